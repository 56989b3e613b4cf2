// Package peers measures how fast what leads to many peers, and to many endpoints
// of a segment, comes into the kernel: by pkg/route and pkg/neigh, and by loops of
// single calls, as flannel makes them, in the same run and in turn. It is the kernel's tables that are
// measured: no agent, no registry, no packets.
//
// Every measurement from cold has a namespace of its own, made before and looked
// at after the clock runs; what is not there as it should be is an error.
package peers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/reconcile"
	"github.com/underlay-cni/underlay/pkg/route"
)

// Sections, variants and things measured, as the report has them.
const (
	Routes  = "routes to peers on one L2 segment"
	Overlay = "VXLAN: neighbour, FDB entry and route of each peer"
	Tenant  = "VXLAN segment: neighbour and two FDB entries of each endpoint"

	Loop   = "a loop such as flannel's"
	Single = "a loop of single calls"
	Ours   = "ours"

	All       = "5,000 peers"
	Endpoints = "5,000 endpoints"
	AFifthBad = "5,000 peers, 1 in 5 bad"
	OneChange = "1 of 5,000 changes"
	RouteBack = "1 route deleted by hand"
	NeighBack = "1 neighbour deleted by hand"
	FDBBack   = "1 FDB entry deleted by hand"
	all       = 5000
	half      = 1000
	few       = 500
	wantHalf  = "1,000 peers"
	wantFew   = "500 peers"
)

// Config says how much is measured. All fields are required.
type Config struct {
	// Namespace makes an empty network namespace, and returns its path. Who made
	// it removes it, when all has been measured: with thousands of routes that
	// takes the kernel long, and others wait for it.
	Namespace func() (string, error)
	// Rounds from cold.
	Rounds int
	// Full has flannel's loop make 5,000 routes as well, once: it looks at all
	// that there are three times for each, which takes minutes.
	Full bool
	// Record is told each measurement.
	Record func(Row, time.Duration)
}

// Row is a line of the report.
type Row struct{ Section, Variant, What string }

// Rows are those that a Config measures, in the order to show them.
func Rows(full bool) []Row {
	rows := []Row{
		{Routes, Loop, wantFew}, {Routes, Ours, wantFew},
		{Routes, Loop, wantHalf}, {Routes, Ours, wantHalf},
	}
	if full {
		rows = append(rows, Row{Routes, Loop, All})
	}
	return append(rows, Row{Routes, Ours, All}, Row{Routes, Ours, AFifthBad},
		Row{Routes, Loop, OneChange}, Row{Routes, Ours, OneChange}, Row{Routes, Ours, RouteBack},
		Row{Overlay, Loop, All}, Row{Overlay, Ours, All}, Row{Overlay, Ours, NeighBack}, Row{Overlay, Ours, FDBBack},
		Row{Tenant, Single, Endpoints}, Row{Tenant, Ours, Endpoints})
}

// Measure measures all rows.
func Measure(ctx context.Context, cfg Config) error {
	type cold struct {
		row Row
		run func(context.Context, Config) (time.Duration, error)
	}
	steps := []cold{
		{Row{Routes, Ours, All}, direct(all, 0)},
		{Row{Routes, Ours, AFifthBad}, direct(all, 5)},
		{Row{Overlay, Loop, All}, overlayLoop},
		{Row{Overlay, Ours, All}, overlay},
		{Row{Tenant, Single, Endpoints}, segmentedLoop},
		{Row{Tenant, Ours, Endpoints}, segmented},
	}
	for _, n := range []struct {
		peers int
		what  string
	}{{few, wantFew}, {half, wantHalf}} {
		steps = append(steps, cold{Row{Routes, Loop, n.what}, directLoop(n.peers)}, cold{Row{Routes, Ours, n.what}, direct(n.peers, 0)})
	}
	measure := func(s cold) error {
		took, err := s.run(ctx, cfg)
		if err != nil {
			return fmt.Errorf("%s, %s, %s: %w", s.row.Section, s.row.What, s.row.Variant, err)
		}
		cfg.Record(s.row, took)
		return ctx.Err()
	}
	for range cfg.Rounds {
		for _, i := range rand.Perm(len(steps)) {
			if err := measure(steps[i]); err != nil {
				return err
			}
		}
	}
	if cfg.Full {
		if err := measure(cold{Row{Routes, Loop, All}, directLoop(all)}); err != nil {
			return err
		}
	}
	if err := change(ctx, cfg); err != nil {
		return fmt.Errorf("%s: %w", OneChange, err)
	}
	return deletedByHand(ctx, cfg)
}

// direct makes the routes to n peers from nothing. Of every badEach peers one is
// out of reach or malformed, which must not keep the others.
func direct(n, badEach int) func(context.Context, Config) (time.Duration, error) {
	return func(ctx context.Context, cfg Config) (took time.Duration, err error) {
		h, err := newHost(cfg)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, h.Close()) }()
		want := segment(n)
		bad := spoil(want, badEach)
		r, err := route.New(route.Config{Netns: h.ns})
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		start := time.Now()
		refused := r.Apply(ctx, want)
		took = time.Since(start)
		if bad == 0 && refused != nil {
			return 0, refused
		}
		if got := failures(r.Status()); got != bad {
			return 0, fmt.Errorf("%d routes failed, want %d", got, bad)
		}
		return took, h.mustHave(n - bad)
	}
}

// failures counts what is not there.
func failures[T any](all []reconcile.Status[T]) (n int) {
	for _, s := range all {
		if s.Err != nil {
			n++
		}
	}
	return n
}

func directLoop(n int) func(context.Context, Config) (time.Duration, error) {
	return func(ctx context.Context, cfg Config) (took time.Duration, err error) {
		h, err := newHost(cfg)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, h.Close()) }()
		want := segment(n)
		start := time.Now()
		err = h.ns.Do(func() error {
			for _, w := range want {
				if err := errors.Join(ctx.Err(), addAsFlannel(w.Object, h.eth1)); err != nil {
					return err
				}
			}
			return nil
		})
		took = time.Since(start)
		if err != nil {
			return 0, err
		}
		return took, h.mustHave(n)
	}
}

// overlay makes three objects for each peer from nothing.
func overlay(ctx context.Context, cfg Config) (took time.Duration, err error) {
	h, err := newHost(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	p := vteps(all)
	k, err := h.keepers()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	start := time.Now()
	err = k.apply(ctx, p)
	took = time.Since(start)
	if err != nil {
		return 0, err
	}
	return took, errors.Join(h.mustHave(all), h.mustHaveEntries(all))
}

func overlayLoop(ctx context.Context, cfg Config) (took time.Duration, err error) {
	h, err := newHost(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	p := vteps(all)
	start := time.Now()
	err = h.ns.Do(func() error {
		for i := range p.routes {
			if err := errors.Join(ctx.Err(), addVTEPAsFlannel(p, i, h.vx1)); err != nil {
				return err
			}
		}
		return nil
	})
	took = time.Since(start)
	if err != nil {
		return 0, err
	}
	return took, errors.Join(h.mustHave(all), h.mustHaveEntries(all))
}

// change gives one peer of many another address, again and again.
func change(ctx context.Context, cfg Config) (err error) {
	ours, err := newHost(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.Close()) }()
	loop, err := newHost(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loop.Close()) }()
	want := segment(all)
	r, err := route.New(route.Config{Netns: ours.ns})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	filler, err := route.New(route.Config{Netns: loop.ns})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, filler.Close()) }()
	if err := errors.Join(r.Apply(ctx, want), filler.Apply(ctx, want)); err != nil {
		return err
	}
	for i := range 4 * cfg.Rounds {
		w := &want[i*all/(4*cfg.Rounds)]
		w.Object.Via = nth(elsewhere, i)
		variants := []struct {
			name string
			run  func() error
		}{
			{Ours, func() error { return r.Apply(ctx, want) }},
			{Loop, func() error {
				return loop.ns.Do(func() error { return addAsFlannel(w.Object, loop.eth1) })
			}},
		}
		for _, v := range rand.Perm(len(variants)) {
			start := time.Now()
			if err := variants[v].run(); err != nil {
				return fmt.Errorf("%s: %w", variants[v].name, err)
			}
			cfg.Record(Row{Routes, variants[v].name, OneChange}, time.Since(start))
		}
	}
	return errors.Join(ours.mustHave(all), loop.mustHave(all))
}

// keepers are the reconcilers of a VXLAN network.
type keepers struct {
	entries *neigh.Reconciler
	routes  *route.Reconciler
}

func (k keepers) apply(ctx context.Context, p vtepPeers) error {
	// The route needs nothing of the neighbour, and a packet both.
	return errors.Join(k.entries.Apply(ctx, p.entries), k.routes.Apply(ctx, p.routes))
}

func (k keepers) Close() error { return errors.Join(k.entries.Close(), k.routes.Close()) }
