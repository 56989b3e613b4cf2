package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam"
)

// clock is a wall clock that tests set.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time      { return c.now }
func (c *clock) add(d time.Duration) { c.now = c.now.Add(d) }

func testOptions(t testing.TB, c *clock) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), BootID: "boot-1", MachineID: "machine"}
	if c != nil {
		o.Now = c.Now
	}
	return o
}

// open opens a ledger that has to be sound and is closed when the test ends,
// or before that by shut.
func open(t testing.TB, o Options) *Ledger {
	t.Helper()
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, l) })
	return l
}

func shut(t testing.TB, l *Ledger) {
	t.Helper()
	if l.file == nil {
		return
	}
	if l.Refused() == nil {
		sound(t, l)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	l.file = nil
}

func sound(t testing.TB, l *Ledger) {
	t.Helper()
	findings, err := l.Check()
	if err != nil || len(findings) > 0 {
		t.Errorf("check: %v\n%s", err, strings.Join(findings, "\n"))
	}
}

// set makes a range set of subnets, without their first, second (the gateway)
// and last address where they are large enough; or of parts of subnets,
// written as "10.0.0.0/24 10.0.0.10-10.0.0.19".
func set(t testing.TB, ranges ...string) ipam.RangeSet {
	t.Helper()
	var out ipam.RangeSet
	for _, s := range ranges {
		subnet, part, _ := strings.Cut(s, " ")
		p := netip.MustParsePrefix(subnet).Masked()
		r := ipam.Range{Subnet: p, Interval: ipam.Interval{First: p.Addr(), Last: lastOf(p)}}
		if from, to, ok := strings.Cut(part, "-"); ok {
			r.First, r.Last = netip.MustParseAddr(from), netip.MustParseAddr(to)
		} else if p.Addr().BitLen()-p.Bits() > 1 {
			r.Gateway = p.Addr().Next()
			r.Exclude = []ipam.Interval{{First: p.Addr(), Last: r.Gateway}, {First: r.Last, Last: r.Last}}
		}
		out = append(out, r)
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func pool(name string, sets ...ipam.RangeSet) ipam.Pool {
	return ipam.Pool{Name: name, Sets: sets, CoolDown: 30 * time.Second, Quarantine: 10 * time.Minute}
}

func att(id string) ipam.Attachment {
	return ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"}
}

func request(p ipam.Pool, id string) ipam.AllocateRequest {
	return ipam.AllocateRequest{Attachment: att(id), Pool: p, Runtime: "ctr",
		Netns: ipam.Netns{Path: "/run/netns/" + id, Dev: 4, Inode: 4026532000}}
}

func addrs(a ipam.Allocation) string {
	var out []string
	for _, x := range a.Addresses {
		out = append(out, x.Prefix.Addr().String())
	}
	return strings.Join(out, " ")
}

// add allocates and returns the addresses, separated by blanks.
func add(t testing.TB, l *Ledger, req ipam.AllocateRequest) string {
	t.Helper()
	a, err := l.Allocate(req, nil)
	if err != nil {
		t.Fatal(err)
	}
	return addrs(a)
}

func del(t testing.TB, l *Ledger, id string) ipam.Released {
	t.Helper()
	r, err := l.Release(ipam.ReleaseRequest{Attachment: att(id)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// states lists all records as "address state holder".
func states(t testing.TB, l *Ledger) []string {
	t.Helper()
	out := []string{}
	err := l.Records(func(r ipam.Record) error {
		out = append(out, fmt.Sprintf("%s %s %s", r.Address.Addr(), r.State, r.Attachment.ContainerID))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantStates(t testing.TB, l *Ledger, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, states(t, l), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func sequence(t testing.TB, l *Ledger) uint64 {
	t.Helper()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sequence
}

func contents(t testing.TB, o Options) string {
	t.Helper()
	var all strings.Builder
	for _, p := range []string{o.dbPath(), o.markPath()} {
		b, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// remembered sees that whoever was acknowledged to hold an address is found
// among those who had it.
func remembered(t *testing.T, l *Ledger, had string) {
	t.Helper()
	id, addr, _ := strings.Cut(had, " ")
	found := false
	err := l.History(netip.MustParseAddr(addr), func(h ipam.Hold) error {
		found = found || h.Attachment == att(id)
		return nil
	})
	if err != nil || !found {
		t.Errorf("%s held %s, and is not remembered, %v", id, addr, err)
	}
}
