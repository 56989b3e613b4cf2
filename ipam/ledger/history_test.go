package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/history"
)

// wantHistory compares who held an address, written as "holder from-until" in
// seconds of the test.
func wantHistory(t testing.TB, l *Ledger, addr string, want ...string) {
	t.Helper()
	var got []string
	start := newClock().now
	err := l.History(netip.MustParseAddr(addr), func(h ipam.Hold) error {
		until := ""
		if !h.Until.IsZero() {
			until = fmt.Sprint(h.Until.Sub(start).Seconds())
		}
		got = append(got, fmt.Sprintf("%s %v-%s", h.Attachment.ContainerID, h.Since.Sub(start).Seconds(), until))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("history of %s (-want +got):\n%s", addr, diff)
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	const one = "10.0.0.1"
	addr := netip.MustParseAddr(one)
	tests := []struct {
		name  string
		steps func(s *scene)
		want  []string
	}{
		{"free", func(*scene) {}, nil},
		{"held", func(s *scene) { s.add("a") }, []string{"a 0-"}},
		{"released", func(s *scene) { s.add("a"); s.c.add(5 * time.Second); s.release("a") }, []string{"a 0-5"}},
		{"a failed ADD held nothing", func(s *scene) { s.add("a"); s.release("a", undo) }, nil},
		{"nor did one whose address somebody else has", func(s *scene) { s.add("a"); s.release("a", undo, conflict(one)) }, nil},
		{"quarantined while it was held", func(s *scene) {
			s.add("a")
			s.c.add(time.Second)
			s.release("a", conflict(one))
		}, []string{"a 0-1"}},
		{"the rest ends, and another one comes", func(s *scene) {
			s.add("a", ips(one))
			s.release("a")
			s.c.add(time.Hour)
			s.add("b", ips(one))
		}, []string{"a 0-0", "b 3600-"}},
		{"an ADD that gives it back first", func(s *scene) {
			s.add("a")
			s.c.add(time.Second)
			s.add("a", ips("10.0.0.3"))
		}, []string{"a 0-1"}},
		{"another namespace", func(s *scene) {
			s.add("a")
			s.c.add(time.Second)
			s.add("a", func(r *ipam.AllocateRequest) { r.Netns.Inode++ })
		}, []string{"a 0-1", "a 1-"}},
		{"the same again", func(s *scene) { s.add("a"); s.c.add(time.Second); s.add("a") }, []string{"a 0-"}},
		{"leaked", func(s *scene) {
			s.add("a")
			for range 2 {
				if _, err := s.l.Missed([]ipam.Attachment{att("a")}, time.Minute); err != nil {
					s.Fatal(err)
				}
				s.c.add(time.Minute)
			}
		}, []string{"a 0-60"}},
		{"by the operator", func(s *scene) {
			s.add("a")
			s.c.add(time.Second)
			for range 2 { // the second one ends its rest
				if _, err := s.l.ReleaseAddress(addr); err != nil {
					s.Fatal(err)
				}
			}
		}, []string{"a 0-1"}},
		{"the clock goes back", func(s *scene) {
			s.add("a")
			s.c.add(-time.Hour)
			s.release("a")
			s.add("b", ips(one))
		}, []string{"a 0--3600", "b -3600-"}},
		{"reboot", func(s *scene) {
			s.add("a")
			shut(s.T, s.l)
			s.c.add(time.Minute)
			s.o.BootID = "boot-2"
			s.l = open(s.T, s.o)
		}, []string{"a 0-60"}},
		{"rebuild", func(s *scene) {
			s.add("a", ips("10.0.0.2"))
			s.release("a")
			s.add("b", ips(one), ownedBy("ns/b"))
			s.release("b")
			s.add("c", ips(one), ownedBy("ns/c"))
			s.c.add(time.Minute)
			shut(s.T, s.l)
			if err := Rebuild(s.Context(), s.o, found("c", one+"/24")); err != nil {
				s.Fatal(err)
			}
			s.l = open(s.T, s.o)
			wantHistory(s.T, s.l, "10.0.0.2", "a 0-0")
			if rec, _, err := s.l.Record(addr); err != nil || rec.Owner != "ns/c" {
				s.Errorf("%+v, %v", rec, err)
			}
		}, []string{"b 0-0", "c 0-60", "c 60-"}},
		{"rebuild of another machine's", func(s *scene) {
			s.add("a")
			shut(s.T, s.l)
			s.o.MachineID = "other"
			if err := Rebuild(s.Context(), s.o, nil); err != nil {
				s.Fatal(err)
			}
			s.l = open(s.T, s.o)
		}, nil},
		{"a ledger from before there was a history", func(s *scene) {
			s.add("a")
			noHistory(s.T, s.l)
			s.release("a")
			s.add("b", ips(one))
			shut(s.T, s.l)
			s.l = open(s.T, s.o)
			s.release("b")
		}, []string{"b 0-0"}},
		{"on a full disk it is left out", func(s *scene) {
			s.add("a")
			err := s.l.update(func(t *tx) error {
				t.short = ErrNoSpace
				_, err := t.releaseKnown(ipam.ReleaseRequest{Attachment: att("a")})
				return err
			})
			if err != nil {
				s.Fatal(err)
			}
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "10.0.0.0/24 10.0.0.1-10.0.0.3")
			tt.steps(s)
			wantHistory(t, s.l, one, tt.want...)
		})
	}
}

// noHistory makes of a ledger what the first ones of schema 2 were.
func noHistory(t testing.TB, l *Ledger) {
	t.Helper()
	err := l.file.Update(func(b *bbolt.Tx) (bool, error) { return true, b.DeleteBucket(bucketHistory) })
	if err != nil {
		t.Fatal(err)
	}
}

// What is wrong with the history is said, and stops nothing.
func TestBrokenHistory(t *testing.T) {
	t.Parallel()
	l := open(t, testOptions(t, newClock()))
	p := pool("lan", set(t, "10.0.0.0/24"))
	add(t, l, request(p, "a"))
	add(t, l, request(p, "b"))
	del(t, l, "a")
	if err := l.update(func(x *tx) error { return x.put(bucketHistory, []byte("z"), nil) }); err != nil {
		t.Fatal(err)
	}
	del(t, l, "b")
	wantStates(t, l, "10.0.0.2 cooling a", "10.0.0.3 cooling b")
	if err := l.History(netip.MustParseAddr("10.0.0.2"), func(ipam.Hold) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("history: %v", err)
	}
	if findings, err := l.Check(); err != nil || len(findings) != 1 {
		t.Errorf("check: %q, %v", findings, err)
	}
	if err := l.update(func(x *tx) error { return x.del(bucketHistory, []byte("z")) }); err != nil {
		t.Fatal(err)
	}
}

// In one transaction with others, a change that fails leaves no row.
func TestHistoryOfAnUndoneChange(t *testing.T) {
	t.Parallel()
	l := open(t, testOptions(t, newClock()))
	add(t, l, request(pool("lan", set(t, "10.0.0.0/24")), "a"))
	failed := errors.New("failed")
	batch := []*change{{fn: func(x *tx) error {
		_, err := x.releaseKnown(ipam.ReleaseRequest{Attachment: att("a")})
		return errors.Join(err, failed)
	}}, {fn: func(x *tx) error {
		_, err := x.releaseKnown(ipam.ReleaseRequest{Attachment: att("a")})
		return err
	}}}
	if err := l.together(batch); err != nil || !errors.Is(batch[0].err, failed) || batch[1].err != nil {
		t.Fatal(err, batch[0].err, batch[1].err)
	}
	wantHistory(t, l, "10.0.0.2", "a 0-0")
}

// The history of a busy node stops growing.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	o := testOptions(t, newClock())
	l := open(t, o)
	p := pool("lan", set(t, "10.0.0.0/24"))
	p.CoolDown = 0
	count := func() (n int) {
		if err := l.view(func(x *tx) (err error) { n, err = x.history().Count(); return err }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	add(t, l, request(p, "a"))
	more := func(n int) int64 {
		t.Helper()
		err := l.update(func(x *tx) error {
			rec, err := x.record(netip.MustParseAddr("10.0.0.2"))
			for range n {
				err = errors.Join(err, x.ended(rec))
			}
			return err
		})
		must(t, err)
		info, err := l.Info()
		must(t, err)
		return info.Size
	}
	for range 8 {
		more(history.Most / 8)
	}
	full := more(history.Most / 8)
	for i := range 1000 {
		id := fmt.Sprint(i)
		add(t, l, request(p, id))
		del(t, l, id)
	}
	size := more(0)
	n := count()
	t.Logf("%d holds, file of %d KiB", n, size>>10)
	if n > history.Most || n < history.Most-history.Most/128 || size > full+(4<<20) {
		t.Errorf("%d holds; %d bytes, then %d", n, full, size)
	}
}
