package segment

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

const (
	mac1, mac2 = "02:00:5e:00:53:01", "02:00:5e:00:53:02"
	addr1      = "10.9.0.1"
	addr2      = "10.9.0.2"
	addr1of6   = "2001:db8:9::1"
	addr2of6   = "2001:db8:9::2"
)

// both are the entries of two hosts with one container each, on the one that is
// not i.
func both(i int) string {
	local, remote := mac1, mac2
	if i == 2 {
		local, remote = mac2, mac1
	}
	return fmt.Sprintf(`br7 10.9.0.1 lladdr %[1]s PERMANENT
br7 10.9.0.2 lladdr %[2]s PERMANENT
br7 2001:db8:9::1 lladdr %[1]s PERMANENT
br7 2001:db8:9::2 lladdr %[2]s PERMANENT
lp7 %[3]s master br7 static
vx7 00:00:00:00:00:00 dst 192.0.2.%[5]d self permanent
vx7 %[4]s dst 192.0.2.%[5]d self permanent
vx7 %[4]s master br7 static
`, mac1, mac2, local, remote, 3-i)
}

func ping(t testing.TB, c container, to string, answers bool) {
	t.Helper()
	wait := "10"
	if !answers {
		wait = "1"
	}
	err := c.ns.Do(func() error { return command("ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", wait, to) })
	if (err == nil) != answers {
		t.Errorf("%s answers: %v, want %v", to, err == nil, answers)
	}
}

// TestSegment: containers on two hosts reach each other as soon as they are on
// record, and nobody asks for what is known; what is damaged is mended, what has
// gone is gone everywhere.
func TestSegment(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	one, two := b.host(), b.host()
	one.start()
	two.start()
	asked := listen(t, b.wire, "br0")
	c1 := one.add("a", mac1, addr1, addr1of6)
	await(t, "published", "7 192.0.2.1 1", func() string { return b.published() })
	c2 := two.add("b", mac2, addr2, addr2of6)
	for i, h := range b.hosts {
		if took := await(t, "entries on "+h.name, both(i+1), h.entries); took > time.Second {
			t.Errorf("%s heard of the other one after %s", h.name, took)
		}
	}
	for _, a := range []string{addr2, addr2of6} {
		ping(t, c1, a, true)
	}
	ping(t, c2, addr1, true)
	if got := asked(); got != "" {
		t.Errorf("on the wire in VXLAN, of addresses that are known:\n%s", got)
	}
	if ports, vteps, known := one.Guard(); fmt.Sprint(ports, vteps, known) != "[8472] [192.0.2.2] true" {
		t.Errorf("guard: %v, %v", ports, vteps)
	}

	mend := func(what, commands string, mended func() bool) {
		t.Helper()
		one.ip(commands)
		began := time.Now()
		await(t, what, both(1), one.entries)
		for mended != nil && !mended() && time.Since(began) < 10*time.Second {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: mended after %s", what, took)
		}
		ping(t, c1, addr2, true)
	}
	mend("a device that is deleted", "link del vx7", nil)
	netnstest.Batch(t, one.ns, "bridge", "fdb flush dev vx7\nfdb flush dev br7")
	mend("an FDB that is flushed", "neigh flush nud permanent dev br7", nil)
	mend("a bridge that is deleted", "link del br7", nil)
	mend("a port that has left", "link set lp7 nomaster", nil)
	mend("an MTU of the parent", "link set eth1 mtu 1400", func() bool { return strings.Contains(one.ip("link show dev lg7"), "mtu 1350") })
	mend("an MTU that is back", "link set eth1 mtu 1500", func() bool { return strings.Contains(one.ip("link show dev lg7"), "mtu 1450") })

	// A host with another address is found there.
	two.ip("addr del 192.0.2.2/24 dev eth1\naddr add 192.0.2.22/24 dev eth1")
	await(t, "a VTEP that has moved", strings.ReplaceAll(both(1), "dst 192.0.2.2 ", "dst 192.0.2.22 "), one.entries)
	ping(t, c2, addr1, true)

	two.del("b", true)
	if took := await(t, "withdrawn", strings.Join(only(both(1), mac1), ""), one.entries); took > time.Second {
		t.Errorf("heard of it after %s", took)
	}
	await(t, "in the registry", "7 192.0.2.1 1", func() string { return b.published() })
	one.del("a", true)
	await(t, "nobody in the registry", "", func() string { return b.published() })
	if links := netnstest.Run(t, one.ns, "ip", "-o", "link"); strings.Contains(links, "7@") || strings.Contains(links, "br7") {
		t.Errorf("left:\n%s", links)
	}
}

// only are the lines that name a MAC.
func only(lines, mac string) (out []string) {
	for line := range strings.Lines(lines) {
		if strings.Contains(line, mac) {
			out = append(out, line)
		}
	}
	return out
}

// published is who is in which segment, one a line: VNI, VTEP, and endpoints.
func (b *bed) published() (out string) {
	b.t.Helper()
	l, err := b.store.List(b.t.Context(), record.SegmentFolder)
	must(b.t, err)
	var lines []string
	for _, i := range l.Items {
		s, err := record.DecodeSegment(i.Value)
		if err != nil {
			lines = append(lines, "odd")
			continue
		}
		lines = append(lines, fmt.Sprintf("%d %s %d", s.VNI, s.VTEP, len(s.Endpoints)))
	}
	return strings.Join(lines, "\n")
}

// TestOverIPv6: hosts that have no other addresses reach each other by IPv6.
func TestOverIPv6(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	one, two := b.host(), b.host()
	for i, h := range b.hosts {
		h.ip(fmt.Sprintf("addr flush dev eth1\naddr add 2001:db8::%d/64 dev eth1 nodad", i+1))
		h.start()
	}
	c1 := one.add("a", mac1, addr1, addr1of6)
	two.add("b", mac2, addr2, addr2of6)
	await(t, "entries", strings.ReplaceAll(both(1), "dst 192.0.2.2 ", "dst 2001:db8::2 "), one.entries)
	for _, a := range []string{addr2, addr2of6} {
		ping(t, c1, a, true)
	}
	if s := one.Segments(); len(s) != 1 || s[0].MTU != 1430 || s[0].Reason != "" || s[0].VTEP.String() != "2001:db8::1" {
		t.Errorf("%+v", s)
	}
}

// TestRestart: an agent that comes again, without the registry too, leaves what is
// there, and makes up for what has changed.
func TestRestart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	one, two := b.host(), b.host()
	one.start()
	two.start()
	c1 := one.add("a", mac1, addr1, addr1of6)
	two.add("b", mac2, addr2, addr2of6)
	await(t, "entries", both(1), one.entries)
	one.stop()
	b.cut("n1")
	before := one.entries()
	began := time.Now()
	done := make(chan struct{})
	go func() { one.start(); close(done) }()
	for time.Since(began) < 3*time.Second {
		if now := one.entries(); now != before {
			t.Fatalf("without the registry:\n%s", now)
		}
		time.Sleep(20 * time.Millisecond)
	}
	ping(t, c1, addr2, true)
	b.cut()
	await(t, "with the registry", both(1), one.entries)
	<-done
	ping(t, c1, addr2, true)

	// What is said while it is away holds, and what is done here is done.
	b.cut("n1")
	b.store.Break()
	one.ip("link del vx7")
	await(t, "mended without the registry", both(1), one.entries)
	one.add("c", "02:00:5e:00:53:03", "10.9.0.3")
	await(t, "another one, without the registry", "1", func() string { return fmt.Sprint(strings.Count(one.entries(), "br7 10.9.0.3 ")) })
	two.del("b", true)
	await(t, "withdrawn", "7 192.0.2.1 1", func() string { return b.published() })
	if !strings.Contains(one.entries(), "br7 10.9.0.2 ") {
		t.Errorf("what it cannot have heard has an effect:\n%s", one.entries())
	}
	b.cut()
	await(t, "published when it is back", "7 192.0.2.1 2", func() string { return b.published() })
	await(t, "heard when it is back", "0", func() string { return fmt.Sprint(strings.Count(one.entries(), "br7 10.9.0.2 ")) })

	// What went while no agent ran is withdrawn by the next.
	one.stop()
	one.del("a", false)
	one.del("c", true)
	one.start()
	await(t, "withdrawn by the next agent", "", func() string { return b.published() })
}

// TestReplaced: a node that was removed is nowhere, although nobody withdraws it; a
// container that has moved is where it came to last.
func TestReplaced(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	one, two, three := b.host(), b.host(), b.host()
	one.start()
	two.start()
	one.add("a", mac1, addr1, addr1of6)
	two.add("b", mac2, addr2, addr2of6)
	await(t, "entries", both(1), one.entries)
	// The host dies, and what it had comes to another one.
	dead := two.id()
	two.stop()
	two.ip("link set eth1 down")
	three.start()
	c3 := three.add("b", mac2, addr2, addr2of6)
	moved := strings.ReplaceAll(both(1), "dst 192.0.2.2 ", "dst 192.0.2.3 ") + "vx7 00:00:00:00:00:00 dst 192.0.2.2 self permanent\n"
	sorted := func(f func() string) func() string { return func() string { return sortLines(f()) } }
	await(t, "moved", sortLines(moved), sorted(one.entries))
	ping(t, c3, addr1, true)
	began := time.Now()
	for { // the session is over
		err := b.reg.Remove(t.Context(), dead, time.Hour)
		if err == nil {
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if took := await(t, "removed", sortLines(strings.ReplaceAll(both(1), "dst 192.0.2.2 ", "dst 192.0.2.3 ")), sorted(one.entries)); took > 5*time.Second {
		t.Errorf("it is there for %s", took)
	}
	if d, _ := one.Segment(vni); len(d.Members) != 2 || len(d.All) != 2 {
		t.Errorf("%+v", d)
	}
	await(t, "in the registry", "false", func() string {
		i, err := b.store.Get(t.Context(), record.SegmentKey(vni, dead))
		must(t, err)
		return fmt.Sprint(i.Rev != 0)
	})
}
