package ledger

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

func TestUses(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	uses := func(u ipam.Uses) func(*ipam.AllocateRequest) {
		return func(r *ipam.AllocateRequest) { r.Uses = u }
	}
	noAddress := func(r *ipam.AllocateRequest) { r.Pool = ipam.Pool{} }
	five := ipam.Uses{Parent: "eth1", VLAN: 5}
	fiveHost := ipam.Uses{Parent: "eth1", VLAN: 5, HostAccess: true}
	s.add("a", uses(five))
	s.add("b", uses(fiveHost), noAddress)
	s.add("c", uses(ipam.Uses{Parent: "eth1", VLAN: 50}))
	s.add("d", uses(ipam.Uses{Parent: "eth1", HostAccess: true}))
	s.add("e", uses(ipam.Uses{Parent: "eth1"}), noAddress) // shares nothing
	users := func(u ipam.Uses) string {
		t.Helper()
		vlan, host, err := s.l.Users(u, 0)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, list := range [][]ipam.AttachmentRecord{vlan, host} {
			for _, a := range list {
				out = append(out, a.Attachment.ContainerID)
			}
			out = append(out, "|")
		}
		return strings.Join(out, "")
	}
	for u, want := range map[ipam.Uses]string{
		five: "ab|b|", {Parent: "eth1"}: "|d|", {Parent: "eth1", VLAN: 50}: "c||", {Parent: "eth", VLAN: 5}: "||",
	} {
		if got := users(u); got != want {
			t.Errorf("users of %+v: %s, want %s", u, got, want)
		}
	}
	if vlan, host, err := s.l.Users(five, 1); err != nil || len(vlan) != 1 || len(host) != 1 {
		t.Errorf("one of each: %v, %v, %v", vlan, host, err)
	}
	if _, _, found, err := s.l.Attachment(att("e")); found || err != nil {
		t.Error("an attachment that shares nothing has a record", err)
	}
	r := s.release("b")
	if r.Uses != fiveHost {
		t.Errorf("released: %+v", r)
	}
	// Another sub-interface: the old one loses its user.
	s.add("a", uses(ipam.Uses{Parent: "eth1", VLAN: 50}))
	if got := users(five) + users(ipam.Uses{Parent: "eth1", VLAN: 50}); got != "||ac||" {
		t.Errorf("users after the change: %s", got)
	}
}

// A segment goes with those that it has been made for, whatever its parent is
// called; who only is in it does not keep it.
func TestSegmentUsers(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	in := func(parent string, vni, port int) func(*ipam.AllocateRequest) {
		return func(r *ipam.AllocateRequest) {
			r.Pool, r.Uses = ipam.Pool{}, ipam.Uses{Parent: parent, Segment: ipam.Segment{VNI: vni, Port: port}}
		}
	}
	s.add("a", in("eth1", 5001, 8472))
	s.add("b", in("eth2", 5001, 4789))
	s.add("c", in("eth1", 50, 8472))
	s.add("d", in("lg5001", 5001, 0))
	users := func(vni, most int, want string) {
		t.Helper()
		list, err := s.l.SegmentUsers(vni, most)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, a := range list {
			got += a.Attachment.ContainerID
		}
		if got != want {
			t.Errorf("users of segment %d: %q, want %q", vni, got, want)
		}
	}
	users(5001, 0, "ab")
	users(5001, 1, "a")
	users(50, 0, "c")
	users(500, 0, "")
	if vlan, host, err := s.l.Users(ipam.Uses{Parent: "eth1", VLAN: 5001}, 0); err != nil || len(vlan)+len(host) > 0 {
		t.Errorf("users of a VLAN: %v, %v, %v", vlan, host, err)
	}
	if rec, _, ok, err := s.l.Attachment(att("d")); err != nil || !ok || rec.Uses.Segment.VNI != 5001 || rec.Version != 4 {
		t.Errorf("record of who is in it: %+v, %v, %v", rec, ok, err)
	}
	if a, err := s.try("a", in("eth1", 50, 8472)); err != nil || a.Replaced.Uses.Segment.VNI != 5001 {
		t.Errorf("another segment: %+v, %v", a, err)
	}
	users(5001, 0, "b")
	users(50, 0, "ac")
	s.release("b")
	s.release("d")
	users(5001, 0, "")
	for _, bad := range []ipam.Segment{{VNI: 1 << 24}, {VNI: -1}, {Port: 1}, {VNI: 1, Port: 1 << 16}} {
		if _, err := s.try("e", in("eth1", bad.VNI, bad.Port)); err == nil || !strings.Contains(err.Error(), "is no VXLAN segment") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestCompany(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	on := func(port string) func(*ipam.AllocateRequest) {
		return func(r *ipam.AllocateRequest) { r.Uses = ipam.Uses{Parent: "eth1", Port: port} }
	}
	want := func(id string, uses func(*ipam.AllocateRequest), want string) {
		t.Helper()
		a, err := s.try(id, uses)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, list := range [][]ipam.AttachmentRecord{a.Peers, a.Rivals} {
			for _, r := range list {
				got = append(got, r.Attachment.ContainerID)
			}
			got = append(got, "|")
		}
		if got := strings.Join(got, ""); got != want {
			t.Errorf("%s: company %s, want %s", id, got, want)
		}
	}
	want("a", on("l2"), "||")
	want("a", on("l2"), "||") // itself is no company
	want("b", on("l2"), "a||")
	want("c", on("l3"), "|ab|")
	want("d", on(""), "||") // has none, and asks for nobody's
	want("e", func(r *ipam.AllocateRequest) { r.Uses = ipam.Uses{Parent: "eth1", VLAN: 5, Port: "l3"} }, "||")
	want("f", on("l2"), "ab|c|")
	for _, id := range []string{"g", "h", "i"} {
		s.add(id, on("l2"))
	}
	want("k", on("l3"), "c|abfg|") // some of many
	want("m", on("l1"), "|abfgck|")
	want("n", on("l4"), "|mabfgck|")
	s.release("a")
	s.release("c")
	s.release("k")
	want("o", on("l2"), "bfgh|mn|")
	// What had been shared is told where it changes.
	s.add("p", func(r *ipam.AllocateRequest) { r.Uses = ipam.Uses{Parent: "eth1", VLAN: 5} })
	a, err := s.try("p", func(r *ipam.AllocateRequest) { r.Uses = ipam.Uses{Parent: "eth1", HostAccess: true} })
	if err != nil || a.Replaced.Uses.VLAN != 5 {
		t.Errorf("replaced %v, %v", a.Replaced, err)
	}
	if a, err = s.try("p", func(r *ipam.AllocateRequest) { r.Uses = ipam.Uses{Parent: "eth1", HostAccess: true} }); err != nil || a.Replaced.Uses.Shared() {
		t.Errorf("replaced the same: %v, %v", a.Replaced, err)
	}
}

func TestReleaseBefore(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	s.add("a")
	before := func(at time.Time) func(*ipam.ReleaseRequest) {
		return func(r *ipam.ReleaseRequest) { r.Before = at }
	}
	s.release("a", before(s.c.now)) // made at this very time
	s.states("10.0.0.2 held a")
	s.release("a", before(s.c.now.Add(time.Microsecond)))
	s.states("10.0.0.2 cooling a")
}

func TestMissed(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	s.add("a")
	s.add("b", func(r *ipam.AllocateRequest) { r.Pool, r.Uses = ipam.Pool{}, ipam.Uses{Parent: "eth1", VLAN: 5} })
	both := []ipam.Attachment{att("a"), att("unknown"), att("b")}
	missed := func(want int) {
		t.Helper()
		got, err := s.l.Missed(both, time.Minute)
		if err != nil || len(got) != want {
			t.Fatalf("released %v, %v; want %d", got, err, want)
		}
	}
	missed(0)
	s.c.add(59 * time.Second)
	missed(0)
	if err := s.l.Seen([]ipam.Attachment{att("a"), att("unknown")}); err != nil {
		t.Fatal(err)
	}
	s.c.add(time.Second)
	missed(1) // b
	s.states("10.0.0.2 held a")
	s.c.add(-time.Hour) // counts from anew
	missed(0)
	s.add("a", func(r *ipam.AllocateRequest) { r.Netns.Inode++ }) // alive again
	s.c.add(2 * time.Minute)
	missed(0)
	s.c.add(time.Minute)
	missed(1)
	s.states("10.0.0.2 cooling a")
	_, _, found, err := s.l.Attachment(att("b"))
	if found || err != nil {
		t.Error(found, err)
	}
}

func TestCounts(t *testing.T) {
	s := newScene(t, "10.0.0.0/28")
	for _, id := range []string{"a", "b", "c"} {
		s.add(id)
	}
	s.release("b")
	s.release("c", conflict("10.0.0.4"))
	s.p.Name = "other"
	s.add("d")
	s.p.Name = "lan"
	got, err := s.l.Counts(s.p)
	want := ipam.Counts{Usable: 13, Held: 1, Cooling: 1, Quarantined: 1, Other: 1}
	if err != nil || got[0] != want {
		t.Errorf("counts %+v, %v; want %+v", got, err, want)
	}
}

// All of a large pool, filled, emptied and filled again.
func TestFull16(t *testing.T) {
	t.Parallel()
	c := newClock()
	o := testOptions(t, c)
	p := pool("lan", set(t, "10.0.0.0/16"))
	const n = 60_000
	fill(t, o, p, n)
	l := open(t, o)
	for _, r := range []string{"10.0.0.2", "10.0.200.0"} {
		if _, err := l.ReleaseAddress(netip.MustParseAddr(r)); err != nil {
			t.Fatal(err)
		}
	}
	info, err := l.Info()
	if err != nil || info.Held != n-2 || info.Attachments != n-2 {
		t.Errorf("%+v, %v", info, err)
	}
	runs := 0
	err = l.view(func(x *tx) error { runs = x.bucket(bucketRun).Stats().KeyN; return nil })
	if err != nil || runs != 1 {
		t.Errorf("%d runs, %v", runs, err)
	}
	shut(t, l)
	// A reboot releases them all.
	o.BootID = "boot-2"
	c.add(time.Second)
	l = open(t, o)
	if err := l.Refused(); err != nil {
		t.Fatal(err)
	}
	if info, err = l.Info(); err != nil || info.Held != 0 || info.Cooling != n || info.Attachments != 0 {
		t.Errorf("after the reboot: %+v, %v", info, err)
	}
	if got := add(t, l, request(p, "new")); got != "10.0.234.98" {
		t.Errorf("the next address is %s", got)
	}
}
