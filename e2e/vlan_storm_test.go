package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// tenants are three networks, each on a VLAN of eth1.
var tenants = []struct {
	name    string
	carrier string
	conf    keys
}{
	{"red", lab.Parent + ".100", keys{"type": "macvlan", "vlan": 100}},
	{"green", lab.Parent + ".200", keys{"type": "ipvlan", "vlan": 200, "flag": "private"}},
	{"blue", lab.Parent + ".300", keys{"type": "ipvlan", "master": lab.Parent + ".300", "mode": "l3s"}},
}

// tenantConf is one tenant's configuration. Each has its own subnets.
func tenantConf(t *testing.T, h *lab.Host, i int, more keys) string {
	t.Helper()
	conf := merged(tenants[i].conf, pool(fmt.Sprintf(`"ranges": [[{"subnet": "10.%d.0.0/24"}], [{"subnet": "fd00:%[1]d::/64"}]]`, i)))
	conf["name"] = tenants[i].name
	return placed(t, h, merged(conf, more))
}

// vlanWorkers is how many plugins run at once.
const vlanWorkers = 8

// Sub-interfaces come with the first and go with the last of many that come and
// go at once: nobody is ever without the one that it uses, and none is left.
func TestVLANStorm(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	rounds := 200
	if testing.Short() {
		rounds /= 5
	}
	h := oneHost(t)
	before := hostLinks(t, h)
	var confs []string
	for i := range tenants {
		confs = append(confs, tenantConf(t, h, i, nil))
	}
	var containers []*lab.Namespace
	var runtimes []*libcni.RuntimeConf
	for w := range vlanWorkers {
		n, rt := container(t, h, fmt.Sprintf("c%d", w))
		containers, runtimes = append(containers, n), append(runtimes, rt)
	}
	lives := &livesOf{h: h, seen: map[int]bool{}}
	var all sync.WaitGroup
	for w := range vlanWorkers {
		all.Go(func() {
			choose := rand.New(rand.NewPCG(1, uint64(w)))
			for round := range rounds / vlanWorkers {
				i := choose.IntN(len(tenants))
				rt := *runtimes[w]
				rt.ContainerID = fmt.Sprintf("w%dr%d", w, round)
				_, err := callWith(t.Context(), h, ours, "", "ADD", confs[i], &rt)
				if err == nil {
					err = lives.on(tenants[i].carrier)
				}
				if err == nil {
					_, err = callWith(t.Context(), h, ours, "", "DEL", confs[i], &rt)
				}
				if err != nil {
					t.Errorf("round %d of worker %d on %s: %v", round, w, tenants[i].carrier, err)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d sub-interfaces have come and gone", len(lives.seen))
	if len(lives.seen) <= len(tenants) {
		t.Error("no sub-interface has gone while others came: this was no storm")
	}
	wantNothing(t, h, before, containers...)
}

// livesOf counts the sub-interfaces that a host has had.
type livesOf struct {
	h *lab.Host

	mu   sync.Mutex
	seen map[int]bool // by index
}

// on: a sub-interface is there and up.
func (l *livesOf) on(name string) error {
	return l.h.Do(func() error {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		l.mu.Lock()
		l.seen[link.Index] = true
		l.mu.Unlock()
		if link.Flags&net.FlagUp == 0 {
			return fmt.Errorf("%s is down", name)
		}
		return nil
	})
}

// A plugin that is killed at any step leaves nothing that a GC does not mend:
// no link, no record, no sub-interface.
func TestVLANCrashEveryStep(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	for _, verb := range []string{"ADD", "DEL"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			before := hostLinks(t, h)
			n, rt := container(t, h, "c1")
			for i := range tenants {
				conf := tenantConf(t, h, i, nil)
				do := func(verb string) {
					t.Helper()
					_, err := callWith(t.Context(), h, ours, "", verb, conf, rt)
					wantOK(t, verb, err)
				}
				do("ADD") // makes the ledger
				if verb == "ADD" {
					do("DEL")
				}
				points := faults(t, h, verb, conf, rt, false)
				for _, f := range points {
					if i > 0 && strings.HasPrefix(f.point, "ledger.") {
						continue // the same for all tenants
					}
					do("DEL")
					if verb == "DEL" {
						do("ADD")
					}
					if _, err := callWith(t.Context(), h, faulty(t), f.env(), verb, conf, rt); !killed(err) {
						t.Fatalf("%s was not killed at %s: %v", verb, f, err)
					}
					collectAll(t, h, i)
					wantNoLink(t, n)
					there(t, h)
					wantNothingHeld(t, h)
					if t.Failed() {
						t.Fatalf("after %s of %s was killed at %s", verb, tenants[i].name, f)
					}
				}
				do("DEL")
			}
			wantNothing(t, h, before, n)
		})
	}
}

// collectAll is a GC to which none of a tenant's attachments is valid.
func collectAll(t *testing.T, h *lab.Host, tenant int) {
	t.Helper()
	conf := tenantConf(t, h, tenant, keys{"cni.dev/valid-attachments": []string{}})
	_, err := call{verb: "GC", plugin: tenants[tenant].conf["type"].(string)}.run(t, h, conf)
	wantOK(t, "GC", err)
}

// Many at once of which some are killed and none says DEL again: GC leaves
// nothing.
func TestVLANCrashStorm(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	h := oneHost(t)
	before := hostLinks(t, h)
	const each = 8 // rounds of a worker
	const slowest = 400 * time.Millisecond
	type kind struct {
		conf     string
		add, del []fault
	}
	var kinds []kind
	first, rt := container(t, h, "first")
	for i := range tenants {
		k := kind{conf: tenantConf(t, h, i, nil)}
		k.add = append(faults(t, h, "ADD", k.conf, rt, false), anyTime)
		k.del = append(faults(t, h, "DEL", k.conf, rt, false), anyTime)
		kinds = append(kinds, k)
	}
	wantNothing(t, h, before, first)

	var died, lived atomic.Int32
	bin := faulty(t)
	// call may die; then the attachment is left to the GC.
	call := func(choose *rand.Rand, verb string, k kind, points []fault, rt *libcni.RuntimeConf) error {
		var f fault
		if choose.IntN(2) == 0 {
			f = points[choose.IntN(len(points))]
		}
		ctx, cancel := t.Context(), func() {}
		if f == anyTime {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(choose.Int64N(int64(slowest))))
		}
		defer cancel()
		_, err := callWith(ctx, h, bin, f.env(), verb, k.conf, rt)
		switch {
		case err == nil:
			lived.Add(1)
			return nil
		case f.at != "" && killed(err), ctx.Err() != nil && silenced(err):
			died.Add(1)
			return errDied
		}
		return fmt.Errorf("%s (fault %q): %w", verb, f, err)
	}
	var mu sync.Mutex
	containers := []*lab.Namespace{first}
	var all sync.WaitGroup
	for w := range vlanWorkers {
		all.Go(func() {
			choose := rand.New(rand.NewPCG(2, uint64(w)))
			for round := range each {
				c, err := h.AddContainer(t.Context(), fmt.Sprintf("w%dr%d", w, round))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				containers = append(containers, c.Namespace)
				mu.Unlock()
				k := kinds[choose.IntN(len(kinds))]
				err = call(choose, "ADD", k, k.add, c.Runtime())
				if err == nil && choose.IntN(2) == 0 {
					err = call(choose, "DEL", k, k.del, c.Runtime())
				}
				if err != nil && !errors.Is(err, errDied) {
					t.Errorf("in %s: %v", c.ID, err)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d calls died, %d did not", died.Load(), lived.Load())
	if died.Load() < vlanWorkers || lived.Load() < vlanWorkers {
		t.Error("too few for a storm")
	}
	for i := range tenants {
		collectAll(t, h, i)
	}
	wantNothing(t, h, before, containers...)
}

var errDied = errors.New("the plugin has died")
