package ledger

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

// scene is a ledger with a clock and one pool, on which a table's steps act.
type scene struct {
	*testing.T
	l *Ledger
	o Options
	c *clock
	p ipam.Pool
}

func newScene(t *testing.T, ranges ...string) *scene {
	c := newClock()
	o := testOptions(t, c)
	return &scene{T: t, l: open(t, o), o: o, c: c, p: pool("lan", set(t, ranges...))}
}

// add gives the attachment addresses; each change is applied to the request.
func (s *scene) add(id string, change ...func(*ipam.AllocateRequest)) string {
	s.Helper()
	a, err := s.try(id, change...)
	if err != nil {
		s.Fatal(err)
	}
	return addrs(a)
}

func (s *scene) try(id string, change ...func(*ipam.AllocateRequest)) (ipam.Allocation, error) {
	req := request(s.p, id)
	for _, c := range change {
		c(&req)
	}
	return s.l.Allocate(req, nil)
}

func (s *scene) release(id string, change ...func(*ipam.ReleaseRequest)) ipam.Released {
	s.Helper()
	req := ipam.ReleaseRequest{Attachment: att(id)}
	for _, c := range change {
		c(&req)
	}
	r, err := s.l.Release(req)
	if err != nil {
		s.Fatal(err)
	}
	return r
}

func (s *scene) want(got, want string) {
	s.Helper()
	if got != want {
		s.Errorf("address %s, want %s", got, want)
	}
}

func (s *scene) states(want ...string) {
	s.Helper()
	wantStates(s.T, s.l, want...)
}

func ips(list ...string) func(*ipam.AllocateRequest) {
	return func(r *ipam.AllocateRequest) {
		for _, a := range list {
			r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
		}
	}
}

func ownedBy(key string) func(*ipam.AllocateRequest) {
	return func(r *ipam.AllocateRequest) { r.Owner = key }
}

func undo(r *ipam.ReleaseRequest) { r.Undo = true }

func conflict(a string) func(*ipam.ReleaseRequest) {
	return func(r *ipam.ReleaseRequest) {
		r.Conflict = append(r.Conflict, ipam.Conflict{Address: netip.MustParseAddr(a), Reason: "answered by 02:00:00:00:00:01"})
	}
}

func TestTransitions(t *testing.T) {
	const small = "10.0.0.0/24 10.0.0.1-10.0.0.3" // three addresses
	tests := []struct {
		name   string
		range1 string
		steps  func(s *scene)
	}{
		{"free to held, one after the other", small, func(s *scene) {
			s.want(s.add("a"), "10.0.0.1")
			s.want(s.add("b"), "10.0.0.2")
			s.states("10.0.0.1 held a", "10.0.0.2 held b")
		}},
		{"held to cooling to free", small, func(s *scene) {
			s.add("a")
			s.release("a")
			s.states("10.0.0.1 cooling a")
			s.c.add(30 * time.Second)
			s.add("b")
			s.states("10.0.0.2 held b")
		}},
		{"no cool-down", small, func(s *scene) {
			s.p.CoolDown = 0
			s.add("a")
			s.release("a")
			s.states()
		}},
		{"a released address is not the next to be used", small, func(s *scene) {
			s.p.CoolDown = 0
			s.add("a")
			s.release("a")
			s.want(s.add("b"), "10.0.0.2")
			s.want(s.add("c"), "10.0.0.3")
			s.want(s.add("d"), "10.0.0.1")
		}},
		{"cooling, oldest first, when nothing else is free", small, func(s *scene) {
			for _, id := range []string{"a", "b", "c"} {
				s.add(id)
			}
			s.release("b")
			s.c.add(time.Second)
			s.release("a")
			s.want(s.add("d"), "10.0.0.2")
			s.want(s.add("e"), "10.0.0.1")
			s.states("10.0.0.1 held e", "10.0.0.2 held d", "10.0.0.3 held c")
		}},
		{"the same container has its address back", small, func(s *scene) {
			s.add("a")
			s.release("a")
			s.add("b")
			s.want(s.add("a"), "10.0.0.1")
		}},
		{"the owner has its address back, another does not", small, func(s *scene) {
			s.add("a", ownedBy("ns/pod"))
			s.release("a")
			s.want(s.add("b", ownedBy("ns/other")), "10.0.0.2")
			s.want(s.add("c", ownedBy("ns/pod")), "10.0.0.1")
		}},
		{"sticky outlives the cool-down", small, func(s *scene) {
			s.p.Sticky, s.p.StickyFor = ipam.StickySoft, time.Hour
			s.add("a", ownedBy("ns/pod"))
			s.release("a")
			s.c.add(59 * time.Minute)
			s.want(s.add("b"), "10.0.0.2")
			s.want(s.add("c", ownedBy("ns/pod")), "10.0.0.1")
		}},
		{"soft gives way", small, func(s *scene) {
			s.p.Sticky, s.p.StickyFor = ipam.StickySoft, time.Hour
			s.add("a", ownedBy("ns/pod"))
			s.add("b")
			s.add("c")
			s.release("a")
			s.release("b") // without an owner: rests for 30 seconds only
			s.want(s.add("d"), "10.0.0.2")
			s.want(s.add("e"), "10.0.0.1")
		}},
		{"strict does not, until it is over", small, func(s *scene) {
			s.p.Sticky, s.p.StickyFor = ipam.StickyStrict, time.Hour
			s.add("a", ownedBy("ns/pod"))
			s.add("b")
			s.add("c")
			s.release("a")
			_, err := s.try("d")
			var full *ipam.ExhaustedError
			if !errors.As(err, &full) || full.Counts.Cooling != 1 || full.Counts.Held != 2 {
				s.Errorf("strict: %v", err)
			}
			var taken *ipam.TakenError
			if _, err := s.try("d", ips("10.0.0.1")); !errors.As(err, &taken) || !strings.Contains(err.Error(), `kept for "ns/pod"`) {
				s.Errorf("strict, asked for: %v", err)
			}
			s.want(s.add("e", ownedBy("ns/pod"), ips("10.0.0.1")), "10.0.0.1")
			s.release("e")
			s.c.add(time.Hour)
			s.want(s.add("d"), "10.0.0.1")
		}},
		{"a failed ADD frees at once", small, func(s *scene) {
			s.add("a")
			s.release("a", undo)
			s.states()
		}},
		{"a failed ADD does not cost the owner its address", small, func(s *scene) {
			s.p.Sticky, s.p.StickyFor = ipam.StickySoft, time.Hour
			s.add("a", ownedBy("ns/pod"))
			s.release("a", undo)
			s.want(s.add("b", ownedBy("ns/pod")), "10.0.0.1")
		}},
		{"conflict to quarantined to free", small, func(s *scene) {
			s.add("a")
			s.release("a", undo, conflict("10.0.0.1"))
			s.states("10.0.0.1 quarantined a")
			s.want(s.add("a"), "10.0.0.2")
			s.add("b")
			if _, err := s.try("c"); err == nil || !strings.Contains(err.Error(), "1 quarantined") {
				s.Errorf("quarantined: %v", err)
			}
			if _, err := s.try("c", ips("10.0.0.1")); err == nil ||
				err.Error() != "requested address 10.0.0.1 is quarantined: answered by 02:00:00:00:00:01" {
				s.Errorf("quarantined, asked for: %v", err)
			}
			s.c.add(10 * time.Minute)
			s.want(s.add("c"), "10.0.0.1")
		}},
		{"a clock that was set back keeps nothing from use", small, func(s *scene) {
			s.c.add(365 * 24 * time.Hour)
			s.add("a")
			s.add("b")
			s.release("a", conflict("10.0.0.1"))
			s.release("b")
			s.c.add(-365 * 24 * time.Hour)
			s.want(s.add("c"), "10.0.0.3")
			s.states("10.0.0.3 held c")
		}},
		{"nor behind what rests by the right clock", small, func(s *scene) {
			s.add("a")
			s.add("b")
			s.c.add(time.Hour)
			s.release("a")
			s.c.add(-time.Hour)
			s.release("b")
			s.states("10.0.0.2 cooling b")
		}},
		{"releases alone clear up", small, func(s *scene) {
			for _, id := range []string{"a", "b", "c"} {
				s.add(id)
			}
			s.release("a")
			s.release("b")
			s.c.add(time.Minute)
			s.release("c")
			s.states("10.0.0.3 cooling c")
		}},
		{"range sets that overlap give two addresses", small, func(s *scene) {
			s.p.Sets = append(s.p.Sets, s.p.Sets[0])
			s.want(s.add("a"), "10.0.0.1 10.0.0.2")
			if _, err := s.try("b"); err == nil {
				s.Error("two addresses of one that was left")
			}
		}},
		{"the operator frees", small, func(s *scene) {
			s.add("a")
			for _, want := range []string{"10.0.0.1 cooling a", ""} {
				rec, err := s.l.ReleaseAddress(netip.MustParseAddr("10.0.0.1"))
				if err != nil || rec.Attachment != att("a") {
					s.Error(rec, err)
				}
				if want == "" {
					s.states()
				} else {
					s.states(want)
				}
			}
			var field *ipam.FieldError
			if _, err := s.l.ReleaseAddress(netip.MustParseAddr("10.0.0.1")); !errors.As(err, &field) {
				s.Errorf("a free one: %v", err)
			}
			if _, _, found, err := s.l.Attachment(att("a")); found || err != nil {
				s.Error("the attachment is still there", err)
			}
		}},
		{"another network changes its ranges", small, func(s *scene) {
			s.add("a")
			s.p.Sets[0] = set(s.T, "10.0.0.0/24 10.0.0.2-10.0.0.9")
			s.want(s.add("a"), "10.0.0.2")
			s.states("10.0.0.1 cooling a", "10.0.0.2 held a")
		}},
		{"a known attachment asks for another address", small, func(s *scene) {
			s.add("a")
			s.want(s.add("a", ips("10.0.0.3")), "10.0.0.3")
			s.states("10.0.0.1 cooling a", "10.0.0.3 held a")
		}},
		{"what cannot be had changes nothing", small, func(s *scene) {
			s.add("a")
			s.add("b")
			if _, err := s.try("a", ips("10.0.0.2")); err == nil {
				s.Error("10.0.0.2 was given out twice")
			}
			s.states("10.0.0.1 held a", "10.0.0.2 held b")
		}},
		{"the host's own addresses are left out", small, func(s *scene) {
			avoid := func(r *ipam.AllocateRequest) { r.Avoid = []netip.Addr{netip.MustParseAddr("10.0.0.1")} }
			s.want(s.add("a", avoid), "10.0.0.2")
			if _, err := s.try("b", avoid, ips("10.0.0.1")); err == nil || !strings.Contains(err.Error(), "this host") {
				s.Errorf("asked for: %v", err)
			}
			s.add("b", avoid)
			if _, err := s.try("c", avoid); err == nil || !strings.Contains(err.Error(), "1 used by others") {
				s.Errorf("exhausted: %v", err)
			}
		}},
		{"pools that overlap skip each other's addresses", small, func(s *scene) {
			s.add("a")
			s.p.Name = "other"
			s.want(s.add("b"), "10.0.0.2")
			s.add("c")
			if _, err := s.try("d"); err == nil || !strings.Contains(err.Error(), "2 held, 0 cooling, 0 quarantined, 0 reserved, 1 used by others") {
				s.Errorf("exhausted: %v", err)
			}
		}},
		{"/32", "10.0.0.7/32", func(s *scene) {
			s.want(s.add("a"), "10.0.0.7")
			if _, err := s.try("b"); err == nil {
				s.Error("given out twice")
			}
			s.release("a")
			s.want(s.add("b"), "10.0.0.7")
		}},
		{"/31", "10.0.0.6/31", func(s *scene) {
			s.want(s.add("a")+" "+s.add("b"), "10.0.0.6 10.0.0.7")
		}},
		{"the last addresses of all", "255.255.255.254/31", func(s *scene) {
			s.want(s.add("a")+" "+s.add("b"), "255.255.255.254 255.255.255.255")
			s.release("b")
			s.want(s.add("c"), "255.255.255.255")
		}},
		{"/64", "2001:db8::/64", func(s *scene) {
			s.want(s.add("a"), "2001:db8::2")
			s.want(s.add("b", ips("2001:db8::ffff:ffff:ffff:fffe")), "2001:db8::ffff:ffff:ffff:fffe")
			s.want(s.add("c"), "2001:db8::3")
			n, err := s.l.Counts(s.p)
			if err != nil || n[0] != (ipam.Counts{Usable: math.MaxInt64, Held: 3}) {
				s.Error(n, err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.steps(newScene(t, tt.range1))
		})
	}
}
