package cli_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/pkg/link"
)

// sources is what `source` prints as JSON.
type sources struct {
	Container  string   `json:"container"`
	IfName     string   `json:"ifName"`
	SourceMACs []string `json:"sourceMACs"`
}

func TestSource(t *testing.T) {
	n := newNode(t)
	c := namespace(t)
	n.add("hears-few", c, n.conf(`"mode":"source","sourceMACs":["02:00:00:00:00:01"],`))
	wants := func(verb string, want ...string) {
		t.Helper()
		words := strings.Fields(verb)
		var got sources
		n.read(&got, append([]string{"source"}, words...)...)
		if diff := cmp.Diff(sources{"hears-few", "eth0", want}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", verb, diff)
		}
		// What it says is what the kernel has.
		h, err := link.OpenAt(int(c.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		l, err := h.ByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if len(l.SourceMACs) != len(want) {
			t.Errorf("%s: the kernel has %v", verb, l.SourceMACs)
		}
	}
	wants("list hears-few", "02:00:00:00:00:01")
	wants("add hears-few 02:00:00:00:00:03 02-00-00-00-00-02", "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03")
	wants("add hears 02:00:00:00:00:03 --ifname eth0", "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03") // again
	wants("remove hears-few 02:00:00:00:00:01 02:00:00:00:00:03", "02:00:00:00:00:02")
	wants("remove hears-few 02:00:00:00:00:01", "02:00:00:00:00:02") // again
}

func TestSourceRefuses(t *testing.T) {
	n := newNode(t)
	foreign, bridged := namespace(t), namespace(t)
	n.addLink(foreign, link.Macvlan{Mode: link.ModeSource}, n.eth1, "underlay:"+n.network+":foreign")
	n.add("bridged", bridged, n.conf(""))
	mac := "02:00:00:00:00:01"
	tests := []struct {
		name   string
		line   string
		status int
		want   string
	}{
		{"another mode", "add bridged " + mac, 1, `container "bridged" has no interface in mode source, which alone has a list of senders; it has eth0 (mode bridge)`},
		{"another interface", "add foreign " + mac + " --ifname net1 --netns " + foreign.Path(), 1, `container "foreign" has no such macvlan interface`},
		{"no macvlan", "list foreign --ifname lo --netns " + foreign.Path(), 1, `it has lo (`},
		{"another container's namespace", "add bridged " + mac + " --netns " + foreign.Path(), 1, `container "bridged" has no such macvlan interface`},
		{"unknown to the ledger", "add foreign " + mac, 1, "hint: if another IPAM plugin gives it its addresses, say where it is: --netns"},
		{"no namespace", "list foreign --netns " + foreign.Path() + "x", 1, "no network namespace there"},
		{"multicast", "add foreign 01:00:5e:00:00:01 --netns " + foreign.Path(), 2, "01:00:5e:00:00:01 is a multicast address"},
		{"one of two is no MAC", "add foreign " + mac + " 02:00 --netns " + foreign.Path(), 2, `MAC: "02:00" is not a MAC address`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if out := n.ctl(tt.status, append([]string{"source"}, strings.Fields(tt.line)...)...); !strings.Contains(out, tt.want) {
				t.Errorf("want %q in:\n%s", tt.want, out)
			}
		})
	}
	// None of that has let anybody in; named by its namespace, this does.
	var got sources
	n.read(&got, "source", "list", "foreign", "--netns", foreign.Path())
	if diff := cmp.Diff(sources{"foreign", "eth0", []string{}}, got); diff != "" {
		t.Errorf("before (-want +got):\n%s", diff)
	}
	n.read(&got, "source", "add", "foreign", mac, "--netns", foreign.Path())
	if diff := cmp.Diff(sources{"foreign", "eth0", []string{mac}}, got); diff != "" {
		t.Errorf("after (-want +got):\n%s", diff)
	}
}
