package registry_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// walk runs clients of one store against each other, one request at a time, in
// the order that choose says; so a list of choices tells all that happens.
type walk struct {
	choose func(options int) int
	// faults and turns are how often a request may go wrong, and a client be
	// stopped for another one.
	faults, turns int
	trail         []string
}

// parked is a request that waits for its turn.
type parked struct {
	client int
	q      memstore.Request
	fate   chan memstore.Fault
}

// run ends when all clients have; what is still on its way has landed by then.
func (w *walk) run(store *memstore.Store, clients []func(context.Context, registry.Registry)) {
	arrived := make(chan parked)
	ended := make(chan int)
	store.Rig(func(q memstore.Request) memstore.Fault {
		// What nobody changes here does not matter for the order.
		if strings.HasPrefix(q.Key, record.Prefix) {
			return memstore.Deliver
		}
		var client int
		fmt.Sscan(q.Client, &client)
		p := parked{client, q, make(chan memstore.Fault)}
		arrived <- p
		return <-p.fate
	})
	defer store.Rig(nil)
	for i, f := range clients {
		go func() {
			f(context.Background(), registry.Registry{Store: store.As(fmt.Sprint(i))})
			ended <- i
		}()
	}
	waiting := make(map[int]parked)
	running, left, last := len(clients), len(clients), -1
	for {
		for running > 0 {
			select {
			case p := <-arrived:
				waiting[p.client] = p
				running--
			case <-ended:
				running, left = running-1, left-1
			}
		}
		type option struct {
			name string
			do   func()
		}
		var options []option
		add := func(name string, do func()) { options = append(options, option{name, do}) }
		order := []int{}
		if _, on := waiting[last]; on {
			order = append(order, last)
		}
		for i := range clients {
			if _, on := waiting[i]; on && i != last && (len(order) == 0 || order[0] != last || w.turns > 0) {
				order = append(order, i)
			}
		}
		for _, i := range order {
			p := waiting[i]
			fates := []memstore.Fault{memstore.Deliver}
			if w.faults > 0 && (p.q.Kind == "swap" || p.q.Kind == "delete") {
				fates = append(fates, memstore.Fail, memstore.Lose, memstore.Delay)
			}
			for _, fate := range fates {
				add(fmt.Sprintf("%d %s %s @%d %s: %d", i, p.q.Kind, p.q.Key, p.q.Rev, p.q.Value, fate), func() {
					if _, on := waiting[last]; on && last != i {
						w.turns--
					}
					if fate != memstore.Deliver {
						w.faults--
					}
					delete(waiting, i)
					last, running = i, 1
					p.fate <- fate
				})
			}
		}
		for i, q := range store.Late() {
			add(fmt.Sprintf("lands: %s %s", q.Kind, q.Key), func() { store.Land(i) })
		}
		if len(options) == 0 {
			if left > 0 {
				panic("nobody waits, and somebody has not ended")
			}
			return
		}
		o := options[w.choose(len(options))]
		w.trail = append(w.trail, o.name)
		o.do()
	}
}

// scene is what clients do at once, and what must be so in the end.
type scene struct {
	// joined are the VNIs, by name, that somebody was told to use, and asked the
	// names that somebody asked for.
	joined map[string]map[int]bool
	asked  map[string]bool
}

func (s *scene) join(name string, prefer int) func(context.Context, registry.Registry) {
	s.asked[name] = true
	return func(ctx context.Context, r registry.Registry) {
		vni, err := r.Join(ctx, "red", name, prefer, n1)
		if err != nil {
			return
		}
		if s.joined[name] == nil {
			s.joined[name] = make(map[int]bool)
		}
		s.joined[name][vni] = true
	}
}

func forget(name string) func(context.Context, registry.Registry) {
	return func(ctx context.Context, r registry.Registry) { _, _ = r.Forget(ctx, "red", name) }
}

// holds is asked when nobody is at it any more: what somebody was told is still so,
// no VNI is that of two names, and whoever asks from now on gets an answer.
func (s *scene) holds(store *memstore.Store) error {
	r := registry.Registry{Store: store}
	of := make(map[int]string)
	for name := range s.asked {
		vni, err := r.VNI(context.Background(), "red", name, 0)
		if full := new(registry.VNIsError); errors.As(err, &full) && full.Range.First == full.Range.Last && full.Names == 1 && len(s.joined[name]) == 0 {
			continue // the other has it
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if of[vni] != "" {
			return fmt.Errorf("%d is that of %s and of %s", vni, name, of[vni])
		}
		of[vni] = name
		delete(s.joined[name], vni)
		if len(s.joined[name]) > 0 {
			return fmt.Errorf("%s has %d, and somebody was told %v", name, vni, s.joined[name])
		}
	}
	return nil
}

var scenes = []struct {
	name        string
	last, turns int // of the range, from 5 on; and of a walk
	clients     func(*scene) []func(context.Context, registry.Registry)
}{
	{"two for one name", 6, 2, func(s *scene) []func(context.Context, registry.Registry) {
		return []func(context.Context, registry.Registry){s.join("a", 0), s.join("a", 6)}
	}},
	{"two names", 6, 1, func(s *scene) []func(context.Context, registry.Registry) {
		return []func(context.Context, registry.Registry){s.join("a", 0), s.join("b", 0)}
	}},
	{"two names for one VNI", 5, 2, func(s *scene) []func(context.Context, registry.Registry) {
		return []func(context.Context, registry.Registry){s.join("a", 0), s.join("b", 0)}
	}},
	{"somebody forgets", 6, 2, func(s *scene) []func(context.Context, registry.Registry) {
		return []func(context.Context, registry.Registry){s.join("a", 0), forget("a")}
	}},
	{"three for two names of two", 6, 0, func(s *scene) []func(context.Context, registry.Registry) {
		return []func(context.Context, registry.Registry){s.join("a", 0), s.join("b", 0), s.join("a", 6)}
	}},
	{"another takes what was forgotten", 7, 0, func(s *scene) []func(context.Context, registry.Registry) {
		return []func(context.Context, registry.Registry){s.join("a", 0), forget("a"), s.join("b", 5)}
	}},
}

// stage makes a store with a range; kept has it begin with "a" allocated.
func stage(t *testing.T, last int, kept bool) *memstore.Store {
	store := memstore.New()
	r := registry.Registry{Store: store}
	must(t, r.PutTenant(t.Context(), record.Tenant{Name: "red", VNIs: record.VNIs{First: 5, Last: last}}))
	if kept {
		_, err := r.VNI(t.Context(), "red", "a", 0)
		must(t, err)
	}
	return store
}

// TestVNIWalks: clients that are stopped for each other so many times, in all ways,
// one change of which is lost, late or has no answer; and at random, with more of
// both.
func TestVNIWalks(t *testing.T) {
	t.Parallel()
	for _, sc := range scenes {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			play := func(w *walk) {
				t.Helper()
				s := &scene{joined: make(map[string]map[int]bool), asked: make(map[string]bool)}
				clients := sc.clients(s)
				store := stage(t, sc.last, strings.Contains(sc.name, "forg"))
				w.run(store, clients)
				if err := s.holds(store); err != nil {
					t.Fatalf("%v, after:\n%s", err, strings.Join(w.trail, "\n"))
				}
			}
			// Each choice in turn, the last one first: choices has the way so far.
			var choices, widths []int
			walks := 0
			for more := true; more; walks++ {
				at := 0
				play(&walk{faults: 1, turns: sc.turns, choose: func(options int) int {
					if at == len(choices) {
						choices, widths = append(choices, 0), append(widths, options)
					}
					widths[at] = options
					at++
					return choices[at-1]
				}})
				choices, widths = choices[:at], widths[:at]
				for more = false; len(choices) > 0 && !more; {
					end := len(choices) - 1
					if choices[end]++; choices[end] < widths[end] {
						more = true
						break
					}
					choices, widths = choices[:end], widths[:end]
				}
			}
			rng := rand.New(rand.NewPCG(1, 1))
			for range 1000 {
				play(&walk{faults: 3, turns: 1000, choose: func(options int) int { return rng.IntN(options) }})
			}
			t.Logf("%d walks", walks)
		})
	}
}
