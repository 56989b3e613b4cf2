package ledger

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

func (s *scene) reserve(addr string) error {
	_, err := s.l.Reserve("lan", netip.MustParseAddr(addr), "for the printer")
	return err
}

func TestReserve(t *testing.T) {
	t.Parallel()
	const one = "10.0.0.1"
	tests := []struct {
		name  string
		steps func(s *scene) error
		want  string // state, or the error
	}{
		{"free", func(s *scene) error { s.add("a", ips("10.0.0.2")); return s.reserve(one) }, "10.0.0.1 reserved "},
		{"cooling", func(s *scene) error { s.add("a"); s.release("a"); return s.reserve(one) }, "10.0.0.1 reserved "},
		{"quarantined", func(s *scene) error { s.add("a"); s.release("a", conflict(one)); return s.reserve(one) }, "10.0.0.1 reserved "},
		{"reserved", func(s *scene) error { s.add("a", ips("10.0.0.2")); return errors.Join(s.reserve(one), s.reserve(one)) }, "10.0.0.1 reserved "},
		{"held", func(s *scene) error { s.add("a"); return s.reserve(one) }, "address: 10.0.0.1 is held by lan/a/eth0"},
		{"unknown pool", func(s *scene) error { return s.reserve(one) }, `pool: this node knows no pool "lan"`},
		{"not of the pool", func(s *scene) error { s.add("a"); return s.reserve("10.0.0.77") }, `address: 10.0.0.77 is outside of the ranges of pool "lan"`},
		{"without room", func(s *scene) error {
			s.add("a", ips("10.0.0.2"))
			return s.l.update(func(t *tx) error {
				t.short = ErrNoSpace
				return t.short
			})
		}, "gives out no addresses"},
		{"and freed", func(s *scene) error {
			s.add("a", ips("10.0.0.2"))
			err := s.reserve(one)
			rec, cerr := s.l.Clear(netip.MustParseAddr(one), ipam.Reserved)
			if rec.Reason != "for the printer" {
				s.Errorf("freed %+v", rec)
			}
			return errors.Join(err, cerr)
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "10.0.0.0/24 10.0.0.1-10.0.0.3")
			if err := tt.steps(s); err != nil {
				if tt.want == "" || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %q, want %q", err, tt.want)
				}
				return
			}
			got := ""
			for _, line := range states(t, s.l) {
				if strings.HasPrefix(line, one+" ") {
					got = line
				}
			}
			if got != tt.want {
				t.Errorf("state %q, want %q", got, tt.want)
			}
		})
	}
}

// Nobody gets what is reserved, not by name either, nor does it end by time or a
// reboot.
func TestReservedStaysReserved(t *testing.T) {
	t.Parallel()
	s := newScene(t, "10.0.0.0/24 10.0.0.1-10.0.0.2")
	s.add("a", ips("10.0.0.2"))
	must(t, s.reserve("10.0.0.1"))
	s.c.add(1000 * time.Hour)
	shut(t, s.l)
	s.o.BootID = "boot-2"
	s.l = open(t, s.o)
	s.want(s.add("b"), "10.0.0.2")
	var taken *ipam.TakenError
	if _, err := s.try("c", ips("10.0.0.1")); !errors.As(err, &taken) || !strings.Contains(err.Error(), "for the printer") {
		t.Errorf("by name: %v", err)
	}
	if _, err := s.try("c"); err == nil || !strings.Contains(err.Error(), "1 reserved") {
		t.Errorf("by chance: %v", err)
	}
	for _, state := range []ipam.State{ipam.Quarantined, ipam.Cooling} {
		if _, err := s.l.Clear(netip.MustParseAddr("10.0.0.1"), state); err == nil || !strings.Contains(err.Error(), "it is reserved: for the printer") {
			t.Errorf("clear what is %s: %v", state, err)
		}
	}
}

// Of a cluster pool a node reserves only what it has. That is in use for the
// other nodes.
func TestReserveOfAClusterPool(t *testing.T) {
	t.Parallel()
	l, _, _ := clusterPool(t, newClock())
	addr := netip.MustParseAddr
	rec, err := l.Reserve("lan", addr("10.9.0.9"), "")
	if err != nil || rec.PoolUUID != clusterUUID || rec.Address.Bits() != 24 {
		t.Errorf("%+v, %v", rec, err)
	}
	s, err := leased(l)
	must(t, err)
	to := func(a string) map[netip.Addr]lease.Entry { return map[netip.Addr]lease.Entry{addr(a): {Node: "other"}} }
	if err := l.Intend(clusterUUID, s, to("10.9.0.9")); !errors.Is(err, lease.ErrInUse) {
		t.Errorf("to give what is reserved: %v", err)
	}
	must(t, l.Intend(clusterUUID, s, to("10.9.0.10")))
	for a, want := range map[string]string{"10.9.0.10": "on its way to node other", "10.9.0.20": "no lease of it"} {
		if _, err := l.Reserve("lan", addr(a), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", a, err)
		}
	}
	sound(t, l)
	d, err := l.Dump()
	must(t, err)
	if len(d.Blocks) != 1 || d.Blocks[0].PoolUUID != clusterUUID || d.Blocks[0].CIDR != crashBlock || len(d.Blocks[0].Addresses) != 7 || d.Blocks[0].Giving[addr("10.9.0.10")] != "other" {
		t.Errorf("blocks %+v", d.Blocks)
	}
	if _, err := l.Clear(addr("10.9.0.9"), ipam.Reserved); err != nil {
		t.Error(err)
	}
	must(t, l.Intend(clusterUUID, s, to("10.9.0.9")))
}

// A backup is a ledger; put in the place of one that has gone on it is refused.
func TestBackup(t *testing.T) {
	t.Parallel()
	c := newClock()
	o := testOptions(t, c)
	l := open(t, o)
	p := pool("lan", set(t, "10.0.0.0/24"))
	add(t, l, request(p, "a"))
	var b bytes.Buffer
	must(t, l.Backup(&b))
	was, err := l.Dump()
	must(t, err)
	add(t, l, request(p, "b"))
	shut(t, l)

	other := Options{DataDir: t.TempDir(), RunDir: filepath.Join(t.TempDir(), "run"), BootID: "boot-1", MachineID: "machine", ReadOnly: true, Now: c.Now}
	write(t, other.dbPath(), b.Bytes())
	copied := open(t, other)
	got, err := copied.Dump()
	must(t, err)
	was.Ledger.Path, was.Ledger.Size, was.Ledger.FreeBytes = got.Ledger.Path, got.Ledger.Size, got.Ledger.FreeBytes
	if diff := cmp.Diff(was, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("the copy (-ledger +copy):\n%s", diff)
	}
	must(t, os.WriteFile(o.dbPath(), b.Bytes(), 0o600))
	l = open(t, o)
	if err := l.Refused(); !errors.Is(err, ErrLost) {
		t.Errorf("restored: %v", err)
	}
	if err := l.Backup(failing{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("to nowhere: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestImport(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := open(t, testOptions(t, c))
	p := pool("lan", set(t, "10.0.0.0/24"))
	add(t, l, request(p, "here"))
	del(t, l, "here")
	c.add(time.Minute) // 10.0.0.2 rests no more, and has a record yet
	add(t, l, request(p, "b"))
	two := found("two", "10.0.0.2/24", "10.0.0.9/24")
	two[0].Owner = "ns/two"
	gone := []Found{{Pool: "lan", Reason: "imported from a test", Addresses: found("", "10.0.0.10/24")[0].Addresses}}
	for name, bad := range map[string][]Found{
		"held":        append(found("x", "10.0.0.20/24"), found("y", "10.0.0.3/24")...),
		"known":       append(found("x", "10.0.0.20/24"), found("b", "10.0.0.21/24")...),
		"twice":       append(found("x", "10.0.0.20/24"), found("y", "10.0.0.20/24")...),
		"no address":  {{Attachment: att("x"), Addresses: []ipam.Address{{}}}},
		"no ID":       found("", "10.0.0.20/24")[:1],
		"same holder": append(found("x", "10.0.0.20/24"), found("x", "10.0.0.21/24")...),
	} {
		var field *ipam.FieldError
		if err := l.Import(append(slices.Clone(two), bad...)); !errors.As(err, &field) {
			t.Errorf("%s: %v", name, err)
		}
		wantStates(t, l, "10.0.0.3 held b")
	}
	must(t, l.Import(append(two, gone...)))
	wantStates(t, l, "10.0.0.2 held two", "10.0.0.3 held b", "10.0.0.9 held two", "10.0.0.10 reserved ")
	rec, _, err := l.Record(netip.MustParseAddr("10.0.0.9"))
	if err != nil || rec.Owner != "ns/two" {
		t.Errorf("%+v, %v", rec, err)
	}
	if rec, _, err = l.Record(netip.MustParseAddr("10.0.0.10")); err != nil || rec.Reason != "imported from a test" {
		t.Errorf("%+v, %v", rec, err)
	}
	// They are as if they had always been here.
	if got := del(t, l, "two"); len(got.Records) != 2 {
		t.Errorf("released %+v", got)
	}
	wantHistory(t, l, "10.0.0.9", "two 60-60")
}
