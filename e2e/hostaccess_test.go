package e2e_test

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// near is a configuration whose containers the host reaches.
func near(t *testing.T, h *lab.Host) string { return lan(t, h, keys{"hostAccess": true}) }

// Host and containers meet, and everyone else meets as without hostAccess.
func TestHostAccess(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c1 := attach(t, b.h1, "c1", near(t, b.h1)).station
	c2 := attach(t, b.h1, "c2", near(t, b.h1)).station
	far := attach(t, b.h1, "far", lan(t, b.h1, nil)).station
	c3 := attach(t, b.h2, "c3", near(t, b.h2)).station
	h1, h2 := hostStation(t, b.h1), hostStation(t, b.h2)

	meet(t, h1, c1)
	meet(t, h1, c2)
	meet(t, c1, c2)
	meet(t, c1, far)
	meet(t, c1, h2)
	meet(t, c1, c3)
	meet(t, h1, c3)
	meet(t, h1, h2)
	apart(t, h1, far) // who does not ask for it does not get it

	link := mustLink(t, b.h1.Namespace, sibling)
	if !link.Up || len(link.Addrs) != 0 {
		t.Errorf("%s is up: %v, has addresses %v; want up and none", sibling, link.Up, link.Addrs)
	}
	if shown := mustDo(t, b.h1.Namespace, "ip", "link", "show", "dev", sibling); !strings.Contains(shown, "NOARP") {
		t.Errorf("%s does ARP: %s", sibling, shown)
	}
}

// Two interfaces of one container.
func TestHostAccessTwice(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := attach(t, b.h1, "c1", near(t, b.h1))
	rt := *a.rt
	rt.IfName = "net1"
	other := &attachment{t: t, cni: a.cni, conf: a.conf, station: a.station, rt: &rt}
	other.add()
	h1 := hostStation(t, b.h1)
	meet(t, h1, a.station)
	meet(t, h1, other.station)
	wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
	meet(t, h1, other.station)
	other.del()
}

// What attachments share goes with the last of them, and what one has of its
// own with that one.
func TestHostAccessLeaves(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h1 := hostStation(t, b.h1)
	none := remainsOf(t, b.h1)
	c1 := attach(t, b.h1, "c1", near(t, b.h1))
	one := remainsOf(t, b.h1)
	c2 := attach(t, b.h1, "c2", near(t, b.h1))
	meet(t, h1, c2.station)

	c2.del()
	wantUndone(t, one, remainsOf(t, b.h1))
	meet(t, h1, c1.station)
	c1.del()
	wantUndone(t, none, remainsOf(t, b.h1))
}

// Neighbours learn one MAC for each of the host's addresses. That they would
// learn a second is shown by a sibling that does ARP.
func TestHostAccessOneMAC(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c1 := attach(t, b.h1, "c1", near(t, b.h1)).station
	h1, h2 := hostStation(t, b.h1), hostStation(t, b.h2)
	heard, err := b.h2.Capture(t.Context(), lab.Parent)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() {
		t.Helper()
		mustDo(t, b.h2.Namespace, "ip", "neigh", "flush", "dev", lab.Parent)
		meet(t, h1, h2)
	}
	for range 3 {
		meet(t, h1, c1)
		ask()
	}
	want := map[netip.Addr][]string{}
	for _, a := range h1.addrs {
		want[a] = []string{h1.mac}
	}
	if diff := cmp.Diff(want, claimed(heard.Frames(), h1.addrs), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("MACs of the host's addresses (-want +got):\n%s", diff)
	}

	mustDo(t, b.h1.Namespace, "ip", "link", "set", sibling, "arp", "on")
	eventually(t, "h2 hears a second MAC", func() bool {
		ask()
		return len(claimed(heard.Frames(), h1.addrs)[h1.addrs[0]]) > 1
	})
}

// claimed returns the MACs that frames name for addresses, each once: as
// sender in ARP, in a neighbour advertisement, and as source of a solicitation.
func claimed(frames []lab.Frame, addrs []netip.Addr) map[netip.Addr][]string {
	const solicitation, advertisement, sourceMAC, targetMAC = 135, 136, 1, 2
	macs := map[netip.Addr][]string{}
	for _, f := range frames {
		var addr netip.Addr
		var mac net.HardwareAddr
		switch p := f.Payload(); {
		case f.Type() == lab.TypeARP && len(p) >= 28:
			addr, mac = netip.AddrFrom4([4]byte(p[14:18])), p[8:14]
		case f.Type() == lab.TypeIPv6 && len(p) >= 72 && p[40] == advertisement && p[64] == targetMAC:
			addr, mac = netip.AddrFrom16([16]byte(p[48:64])), p[66:72]
		case f.Type() == lab.TypeIPv6 && len(p) >= 72 && p[40] == solicitation && p[64] == sourceMAC:
			addr, mac = netip.AddrFrom16([16]byte(p[8:24])), p[66:72]
		}
		if slices.Contains(addrs, addr) && !slices.Contains(macs[addr], mac.String()) {
			macs[addr] = append(macs[addr], mac.String())
		}
	}
	return macs
}

// With an address of the host, the kernel drops the routes that have it as
// their source. The next ADD makes them anew, for all.
func TestHostAccessAddressChange(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h1 := hostStation(t, b.h1)
	c1 := attach(t, b.h1, "c1", near(t, b.h1)).station
	c2 := attach(t, b.h1, "c2", near(t, b.h1)).station
	meet(t, h1, c1)
	readdress(t, b.h1, "192.0.2.1/24", "2001:db8::1/64")
	if got := answered(t, h1, c1, enough); slices.ContainsFunc(got, netip.Addr.Is4) {
		t.Errorf("%v answered: the route was not dropped", got)
	}
	c3 := attach(t, b.h1, "c3", near(t, b.h1)).station
	for _, c := range []station{c1, c2, c3} {
		meet(t, h1, c)
	}
}

// A container knows the host by the address that it had at the ADD. One that
// is new is known to containers that are, and to others when they are added
// again.
func TestHostAccessNewAddress(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c1 := attach(t, b.h1, "c1", near(t, b.h1))
	readdress(t, b.h1, "192.0.2.3/24", "2001:db8::3/64")
	h1 := hostStation(t, b.h1)
	meet(t, h1, attach(t, b.h1, "c2", near(t, b.h1)).station)
	c1.add()
	meet(t, h1, c1.station)
}

// readdress gives eth1 these addresses in place of those that it has.
func readdress(t *testing.T, h *lab.Host, addrs ...string) {
	t.Helper()
	mustDo(t, h.Namespace, "ip", "addr", "flush", "dev", lab.Parent)
	for _, a := range addrs {
		mustDo(t, h.Namespace, "ip", "addr", "add", a, "dev", lab.Parent, "nodad")
	}
}

// GC removes what attachments that died have left on the host.
func TestHostAccessGC(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// forget has the ledger forget the dead, too: a crash between two steps
		// of DEL leaves that.
		forget bool
		// stays: another container lives.
		stays bool
	}{
		{name: "last"},
		{name: "last and forgotten", forget: true},
		{name: "one of two", stays: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			h1 := hostStation(t, b.h1)
			valid := []types.GCAttachment{}
			var other *attachment
			if test.stays {
				other = attach(t, b.h1, "c0", near(t, b.h1))
				valid = append(valid, types.GCAttachment{ContainerID: other.ID, IfName: "eth0"})
			}
			before := remainsOf(t, b.h1)
			dead := attach(t, b.h1, "c1", near(t, b.h1))
			mustDo(t, b.h1.Namespace, "ip", "netns", "delete", dead.ID)
			if test.forget {
				forgetRecord(t, b.h1, dead)
			}
			mustLink(t, b.h1.Namespace, sibling)

			conf := placed(t, b.h1, keys{"hostAccess": true, "cni.dev/valid-attachments": valid})
			for range 2 {
				_, err := call{verb: "GC"}.run(t, b.h1, conf)
				wantOK(t, "GC", err)
				wantUndone(t, before, remainsOf(t, b.h1))
			}
			if test.stays {
				meet(t, h1, other.station)
			}
		})
	}
}

// forgetRecord removes what the ledger has of an attachment.
func forgetRecord(t *testing.T, h *lab.Host, a *attachment) {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: h.DataDir, RunDir: h.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	victim := ipam.Attachment{Network: "lan", ContainerID: a.ID, IfName: a.rt.IfName}
	if _, err := l.Release(ipam.ReleaseRequest{Attachment: victim, Undo: true}); err != nil {
		t.Fatal(err)
	}
}

// Where the addresses are a foreign IPAM plugin's, the ledger knows the MACs
// alone.
func TestHostAccessForeignIPAM(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	conf := lan(t, h, keys{"hostAccess": true, "ipam": keys{"type": "host-local", "ranges": []any{
		[]any{keys{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.19"}},
		[]any{keys{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10", "rangeEnd": "2001:db8::19"}}}}})
	come := func(name string) *attachment {
		a := &attachment{t: t, cni: h.CNI(ours, reference), conf: conf}
		a.Namespace, a.rt = container(t, h, name)
		a.add()
		return a
	}
	leads := func(a *attachment) bool {
		shown := mustDo(t, h.Namespace, "ip", "route", "show", "dev", sibling) + mustDo(t, h.Namespace, "ip", "neigh", "show", "dev", sibling)
		return strings.Contains(shown, a.addrs[0].String()+" ")
	}
	stays, goes := come("c1"), come("c2")
	meet(t, hostStation(t, h), goes.station)
	goes.del()
	if !leads(stays) || leads(goes) {
		t.Errorf("the host's side leads to %s: %v, to %s, which is gone: %v", stays.ID, leads(stays), goes.ID, leads(goes))
	}
	// The kernel drops the routes with the address that is their source.
	mustDo(t, h.Namespace, "ip", "addr", "flush", "dev", lab.Parent)
	mustDo(t, h.Namespace, "ip", "addr", "add", "192.0.2.1/24", "dev", lab.Parent)
	mustDo(t, h.Namespace, "ip", "addr", "add", "2001:db8::1/64", "dev", lab.Parent, "nodad")
	come("c3")
	meet(t, hostStation(t, h), stays.station)
}

// After a reboot a DEL may come before anything else has made the run folder.
func TestHostAccessDelAfterReboot(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", near(t, h))
	mustDo(t, h.Namespace, "ip", "netns", "delete", a.ID)
	if err := os.RemoveAll(h.RunDir); err != nil {
		t.Fatal(err)
	}
	wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
	wantNothingHeld(t, h)
	if _, there, err := h.Link(t.Context(), sibling); there || err != nil {
		t.Errorf("the sibling is there: %v, %v", there, err)
	}
}
