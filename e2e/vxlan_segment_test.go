package e2e_test

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// TestSegmentApart: two tenants have the same subnet in segments of their own on
// one host. Inside each all reach all; from the one to the other comes nothing,
// of what is for one, for all, or for a group.
func TestSegmentApart(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	before := hostLinks(t, h)
	red, blue := tenant(t, "red", 5001, nil), tenant(t, "blue", 5002, nil)
	r1, r2 := attach(t, h, "r1", red), attach(t, h, "r2", red)
	b1, b2 := attach(t, h, "b1", blue), attach(t, h, "b2", blue)
	wantSegments(t, h, 5001, 5002)
	for _, mtu := range []int{mustLink(t, r1.Namespace, "eth0").MTU, mustLink(t, h.Namespace, "lg5001").MTU} {
		if mtu != 1450 {
			t.Errorf("MTU %d, want what VXLAN leaves of 1500", mtu)
		}
	}
	meet(t, r1.station, r2.station)
	meet(t, b1.station, b2.station)
	apart(t, r1.station, b1.station)
	apart(t, r2.station, b2.station)

	same, other := hearIn(t, r2), hearIn(t, b2)
	for _, frame := range shout(t, r1.station, "eth0") {
		heard(t, same, frame)
	}
	_, _ = r1.Ping(t.Context(), nobodys, time.Second) // nobody has it
	if !asked(same, nobodys) {
		t.Errorf("%s has not heard who asks for %s", r2.ID, nobodys)
	}
	for _, f := range other.Close() {
		if strings.Contains(f.String(), r1.mac) || strings.Contains(f.String(), nobodys.String()) {
			t.Errorf("%s has heard of %s: %s", b2.ID, r1.ID, f)
		}
	}

	for _, a := range []*attachment{r1, r2, b1, b2} {
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
	}
	r1.del()
	wantSegments(t, h, 5001, 5002)
	reaches(t, b1.station, b2.station)
	r2.del()
	wantSegments(t, h, 5002)
	b1.del()
	b2.del()
	wantNothing(t, h, before, r1.Namespace, r2.Namespace, b1.Namespace, b2.Namespace)
}

func hearIn(t *testing.T, a *attachment) *lab.Capture {
	t.Helper()
	c, err := a.Capture(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSegmentQuiet: the registry knows who has an address in a segment, so nobody
// is asked and nobody told, unless the configuration wants it.
func TestSegmentQuiet(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", tenant(t, "red", 5001, nil))
	for _, test := range []struct {
		name  string
		more  keys
		quiet bool
	}{
		{"by default", nil, true},
		{"off", keys{"conflictDetection": "off"}, true},
		{"fast", keys{"conflictDetection": "fast"}, false},
		{"another's addresses", keys{"ipam": json.RawMessage(`{"type": "host-local", "dataDir": "` + t.TempDir() + `",
			"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd08::/64"}]]}`)}, false},
	} {
		heard := hearIn(t, a)
		b := &attachment{t: t, cni: h.CNI(ours, reference), conf: tenant(t, "red", 5001, test.more)}
		b.Namespace, b.rt = container(t, h, "c"+strings.ReplaceAll(test.name[:3], " ", ""))
		b.add()
		time.Sleep(50 * time.Millisecond)
		said := false
		for _, f := range heard.Close() {
			said = said || strings.Contains(f.String(), b.addrs[0].String())
		}
		if said == test.quiet {
			t.Errorf("%s: heard of %s: %v", test.name, b.addrs[0], said)
		}
		b.del()
	}
}

// TestSegmentResult: the interface of the chain is the next plugin's parent, and
// the ledger tells who is in which segment.
func TestSegmentResult(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	_, rt := container(t, h, "c1")
	alone := segment(5001, keys{"cniVersion": "1.1.0", "name": "red", "mtu": 1400, "port": 4789, "dataDir": h.DataDir, "runDir": h.RunDir})
	text, err := json.Marshal(alone)
	if err != nil {
		t.Fatal(err)
	}
	var first string
	for range 2 { // ADD may come twice
		out, err := call{verb: "ADD", plugin: "vxlan", rt: rt}.run(t, h, string(text))
		if err != nil {
			t.Fatal(err)
		}
		var res current.Result
		if err := json.Unmarshal(out, &res); err != nil {
			t.Fatal(err)
		}
		leg := mustLink(t, h.Namespace, "lg5001")
		if len(res.Interfaces) != 1 || len(res.IPs) != 0 || *res.Interfaces[0] != (current.Interface{Name: "lg5001", Mac: leg.MAC, Mtu: 1400}) {
			t.Errorf("result: %s, the leg is %+v", out, leg)
		}
		if first != "" && first != string(out) {
			t.Errorf("the second ADD says %s, the first %s", out, first)
		}
		first = string(out)
	}
	if device := mustDo(t, h.Namespace, "ip", "-d", "link", "show", "vx5001"); !strings.Contains(device, "vxlan id 5001 local 192.0.2.1 dev eth1") || !strings.Contains(device, "dstport 4789") {
		t.Errorf("device: %s", device)
	}
	c2 := attach(t, h, "c2", strings.Replace(tenant(t, "red", 5001, nil), `"mode":"segment"`, `"mode":"segment","port":4789`, 1))
	if mtu := mustLink(t, c2.Namespace, "eth0").MTU; mtu != 1400 {
		t.Errorf("MTU %d, want that of who was there before", mtu)
	}
	segments := map[string]int{}
	for _, a := range readBooks(t, h).Attachments {
		if a.Uses.Segment.VNI != 5001 {
			t.Errorf("record %+v", a)
		}
		segments[a.Attachment.Network+" "+a.Uses.Parent] += a.Uses.Segment.Port
	}
	if segments["red/vxlan eth1"] != 2*4789 || segments["red lg5001"] != 0 || len(segments) != 2 {
		t.Errorf("on record: %v", segments)
	}
	c2.del()
	_, err = call{verb: "DEL", plugin: "vxlan", rt: rt}.run(t, h, string(text))
	wantOK(t, "DEL", err)
	wantSegments(t, h)
}

// TestSegmentStorm: many containers come into one segment at once, and leave it.
func TestSegmentStorm(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	before := hostLinks(t, h)
	const n = 8
	all := make([]*attachment, n)
	for i := range all {
		a := &attachment{t: t, cni: h.CNI(ours), conf: tenant(t, "red", 5001, nil)}
		a.Namespace, a.rt = container(t, h, "c"+string(rune('1'+i)))
		all[i] = a
	}
	for range 3 {
		each(t, all, func(a *attachment) error {
			_, err := a.cni.Add(t.Context(), a.conf, a.rt)
			return err
		})
		wantSegments(t, h, 5001)
		// Half of them leave while the other half comes again.
		each(t, all, func(a *attachment) error {
			if a.ID > all[n/2].ID {
				_, err := a.cni.Add(t.Context(), a.conf, a.rt)
				return err
			}
			return a.cni.Del(t.Context(), a.conf, a.rt)
		})
		wantSegments(t, h, 5001)
		each(t, all, func(a *attachment) error { return a.cni.Del(t.Context(), a.conf, a.rt) })
		wantNothing(t, h, before)
	}
}

func each(t *testing.T, all []*attachment, do func(*attachment) error) {
	t.Helper()
	var wg sync.WaitGroup
	for _, a := range all {
		wg.Go(func() {
			if err := do(a); err != nil {
				t.Errorf("%s: %v", a.ID, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// DEL succeeds whatever is gone, and leaves nothing; another's segment it leaves
// alone.
func TestSegmentDel(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, h *lab.Host, c *attachment){
		"netns is not told": func(_ *testing.T, _ *lab.Host, c *attachment) { c.rt.NetNS = "" },
		"netns is gone": func(t *testing.T, h *lab.Host, c *attachment) {
			mustDo(t, h.Namespace, "ip", "netns", "delete", c.ID)
		},
		"master is another": func(_ *testing.T, _ *lab.Host, c *attachment) {
			c.conf = strings.Replace(c.conf, `"master":"eth1"`, `"master":"gone0"`, 1)
		},
		"vni is another": func(_ *testing.T, _ *lab.Host, c *attachment) {
			c.conf = strings.Replace(c.conf, `"vni":5001`, `"vni":5002`, 1)
		},
		"mode is none": func(_ *testing.T, _ *lab.Host, c *attachment) {
			c.conf = strings.Replace(c.conf, `"mode":"segment"`, `"mode":"?"`, 1)
		},
		"no prevResult": func(t *testing.T, h *lab.Host, c *attachment) { c.forget(h) },
		"leg is gone": func(t *testing.T, h *lab.Host, _ *attachment) {
			mustDo(t, h.Namespace, "ip", "link", "delete", "lg5001")
		},
		"device is gone": func(t *testing.T, h *lab.Host, _ *attachment) {
			mustDo(t, h.Namespace, "ip", "link", "delete", "vx5001")
		},
		"run folder is gone": func(t *testing.T, h *lab.Host, _ *attachment) { // as after a reboot
			for _, l := range []string{"lg5001", "vx5001", "br5001"} {
				mustDo(t, h.Namespace, "ip", "link", "delete", l)
			}
			wantOK(t, "forget", os.RemoveAll(h.RunDir))
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			other := attach(t, h, "c2", tenant(t, "blue", 5002, nil))
			c := attach(t, h, "c1", tenant(t, "red", 5001, nil))
			spoil(t, h, c)
			for range 2 {
				wantOK(t, "DEL", c.cni.Del(t.Context(), c.conf, c.rt))
			}
			wantSegments(t, h, 5002)
			other.del()
			wantNothingHeld(t, h)
			wantSegments(t, h)
		})
	}
}
