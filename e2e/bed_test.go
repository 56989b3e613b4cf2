package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/underlay-cni/underlay/e2e/lab"
)

const (
	soon   = 15 * time.Second // for an answer that is to come, on a busy machine
	enough = time.Second      // for five questions to stay unanswered
)

// bed is two hosts, h1 and h2, on one switch and one dual-stack subnet.
type bed struct {
	h1, h2 *lab.Host
}

func newBed(t *testing.T) *bed {
	t.Helper()
	l := lab.Test(t)
	add := func(name string, n int) *lab.Host {
		h, err := l.AddHost(t.Context(), name,
			netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", n)),
			netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", n)))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	return &bed{h1: add("h1", 1), h2: add("h2", 2)}
}

// keys are what a configuration has besides that of lan, or in its place.
type keys map[string]any

// lan is a configuration for a host, of macvlan if the keys do not say another
// type. Without a cluster registry each host has a ledger that knows nothing of
// the other, so each has its own ranges of the subnet: .10-.19 on h1, .20-.29 on
// h2.
func lan(t *testing.T, h *lab.Host, more keys) string {
	t.Helper()
	tens := h.Name[1:]
	conf := keys{
		"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "master": lab.Parent,
		"ipam": json.RawMessage(`{"type": "underlay", "ranges": [
			[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.` + tens + `0", "rangeEnd": "192.0.2.` + tens + `9"}],
			[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::` + tens + `0", "rangeEnd": "2001:db8::` + tens + `9"}]]}`),
	}
	maps.Copy(conf, more)
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// station is something with an IPv4 and an IPv6 address on the switch.
type station struct {
	*lab.Namespace
	addrs []netip.Addr
	mac   string
}

// hostStation is the host itself, on its eth1.
func hostStation(t *testing.T, h *lab.Host) station { return stationOn(t, h, lab.Parent) }

// stationOn is the host itself, on one of its interfaces.
func stationOn(t *testing.T, h *lab.Host, ifName string) station {
	t.Helper()
	s := station{Namespace: h.Namespace}
	link := mustLink(t, h.Namespace, ifName)
	s.mac = link.MAC
	for _, p := range link.Addrs {
		if !p.Addr().IsLinkLocalUnicast() {
			s.addrs = append(s.addrs, p.Addr())
		}
	}
	return s
}

// attachment is a container on the network, and what it takes to detach it.
type attachment struct {
	station
	t    *testing.T
	cni  *lab.CNI
	conf string
	rt   *libcni.RuntimeConf
}

// attach makes a container and ADDs it; CNI_ARGS are pairs of key and value.
func attach(t *testing.T, h *lab.Host, name, conf string, args ...[2]string) *attachment {
	t.Helper()
	a := &attachment{t: t, cni: h.CNI(ours), conf: conf}
	a.Namespace, a.rt = container(t, h, name)
	a.rt.Args = args
	a.add()
	return a
}

// container makes a container that is attached to nothing.
func container(t *testing.T, h *lab.Host, name string) (*lab.Namespace, *libcni.RuntimeConf) {
	t.Helper()
	c, err := h.AddContainer(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return c.Namespace, c.Runtime()
}

func (a *attachment) add() {
	a.t.Helper()
	a.addAny()
	if len(a.addrs) != 2 || a.addrs[0].Is4() == a.addrs[1].Is4() {
		a.t.Fatalf("ADD %s: addresses %v, want one of each family", a.ID, a.addrs)
	}
}

// addAny is add for whatever addresses there are.
func (a *attachment) addAny() {
	a.t.Helper()
	result, err := a.cni.Add(a.t.Context(), a.conf, a.rt)
	if err != nil {
		a.t.Fatalf("ADD %s: %v", a.ID, err)
	}
	a.addrs = nil
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		a.addrs = append(a.addrs, addr.Unmap())
	}
	a.mac = mustLink(a.t, a.Namespace, "eth0").MAC
}

// del DELs; what was attached is gone after it.
func (a *attachment) del() {
	a.t.Helper()
	if err := a.cni.Del(a.t.Context(), a.conf, a.rt); err != nil {
		a.t.Fatalf("DEL %s: %v", a.ID, err)
	}
	wantNoLink(a.t, a.Namespace)
}

// again DELs and ADDs under another configuration.
func (a *attachment) again(conf string) {
	a.t.Helper()
	a.del()
	a.conf = conf
	a.add()
}

// wantNoLink: there is nothing in the namespace but lo.
func wantNoLink(t *testing.T, n *lab.Namespace) {
	t.Helper()
	links, err := n.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name != "lo" {
		t.Errorf("links left in %s: %+v", n.ID, links)
	}
}

func mustLink(t *testing.T, n *lab.Namespace, name string) lab.Link {
	t.Helper()
	link, ok, err := n.Link(t.Context(), name)
	if err != nil || !ok {
		t.Fatalf("%s in %s: found %v, error %v", name, n.ID, ok, err)
	}
	return link
}

// reaches: from pings to, over IPv4 and IPv6, and is answered.
func reaches(t *testing.T, from, to station) {
	t.Helper()
	if got := answered(t, from, to, soon); len(got) != len(to.addrs) {
		t.Errorf("%s -> %s %v: only %v answered", from.ID, to.ID, to.addrs, got)
	}
}

// silent: from pings to, over IPv4 and IPv6, and nothing answers. It proves
// something only where reaches holds for the same stations at another time, or
// for each of them and a third.
func silent(t *testing.T, from, to station) {
	t.Helper()
	if got := answered(t, from, to, enough); len(got) != 0 {
		t.Errorf("%s -> %s: %v answered", from.ID, to.ID, got)
	}
}

// meet is reaches, both ways.
func meet(t *testing.T, a, b station) {
	t.Helper()
	reaches(t, a, b)
	reaches(t, b, a)
}

// apart is silent, both ways.
func apart(t *testing.T, a, b station) {
	t.Helper()
	silent(t, a, b)
	silent(t, b, a)
}

// answered returns the addresses that answered within wait, asked at once.
func answered(t *testing.T, from, to station, wait time.Duration) []netip.Addr {
	t.Helper()
	type answer struct {
		addr netip.Addr
		ok   bool
		err  error
	}
	answers := make(chan answer)
	for _, addr := range to.addrs {
		go func() {
			ok, err := from.Ping(t.Context(), addr, wait)
			answers <- answer{addr, ok, err}
		}()
	}
	var got []netip.Addr
	for range to.addrs {
		a := <-answers
		if a.err != nil {
			t.Errorf("%s -> %s: %v", from.ID, a.addr, a.err)
		}
		if a.ok {
			got = append(got, a.addr)
		}
	}
	slices.SortFunc(got, netip.Addr.Compare)
	return got
}
