package peers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/route"
)

// missing is how long nothing may come back.
const missing = 10 * time.Second

// deletedByHand deletes single objects of 5,000 peers, and waits until the kernel
// says that they are there again.
func deletedByHand(ctx context.Context, cfg Config) error {
	if err := deletedRoutes(ctx, cfg); err != nil {
		return fmt.Errorf("%s: %w", RouteBack, err)
	}
	if err := deletedEntries(ctx, cfg); err != nil {
		return fmt.Errorf("%s or %s: %w", NeighBack, FDBBack, err)
	}
	return nil
}

// running has a reconciler keep what it has applied, until stop.
func running(ctx context.Context, run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

func deletedRoutes(ctx context.Context, cfg Config) (err error) {
	h, err := newHost(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	r, err := route.New(route.Config{Netns: h.ns, Resync: time.Hour})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	want := segment(all)
	if err := r.Apply(ctx, want); err != nil {
		return err
	}
	stop := running(ctx, r.Run)
	defer func() { err = errors.Join(err, stop()) }()

	heard, done, ns := make(chan netlink.RouteUpdate, 64), make(chan struct{}), vnetns.NsHandle(h.ns.Fd())
	defer close(done)
	if err := netlink.RouteSubscribeWithOptions(heard, done, netlink.RouteSubscribeOptions{Namespace: &ns}); err != nil {
		return err
	}
	for i := range 2 * cfg.Rounds {
		gone := netlinkRoute(want[i*all/(2*cfg.Rounds)].Object, h.eth1)
		gone.Scope = netlink.SCOPE_NOWHERE // of any, as iproute2 deletes
		start := time.Now()
		if err := h.nl.RouteDel(gone); err != nil {
			return err
		}
		err := await(ctx, heard, func(u netlink.RouteUpdate) bool {
			return u.Type == unix.RTM_NEWROUTE && u.Dst != nil && u.Dst.String() == gone.Dst.String()
		})
		if err != nil {
			return fmt.Errorf("%s: %w", gone.Dst, err)
		}
		cfg.Record(Row{Routes, Ours, RouteBack}, time.Since(start))
	}
	return h.mustHave(all)
}

func deletedEntries(ctx context.Context, cfg Config) (err error) {
	h, err := newHost(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	k, err := h.keepers()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	p := vteps(all)
	if err := k.apply(ctx, p); err != nil {
		return err
	}
	stop := running(ctx, k.entries.Run)
	defer func() { err = errors.Join(err, stop()) }()

	heard, done, ns := make(chan netlink.NeighUpdate, 64), make(chan struct{}), vnetns.NsHandle(h.ns.Fd())
	defer close(done)
	if err := netlink.NeighSubscribeWithOptions(heard, done, netlink.NeighSubscribeOptions{Namespace: &ns}); err != nil {
		return err
	}
	for i := range 4 * cfg.Rounds {
		// Both of the same peer, in turn.
		e := p.entries[2*(i/2)+i%2].Object
		gone := &netlink.Neigh{LinkIndex: h.vx1, State: netlink.NUD_PERMANENT, IP: ip(e.Addr), HardwareAddr: e.MAC[:]}
		row := Row{Overlay, Ours, NeighBack}
		if e.Kind == neigh.Self {
			gone.Family, gone.Flags, row.What = unix.AF_BRIDGE, netlink.NTF_SELF, FDBBack
		}
		start := time.Now()
		if err := h.nl.NeighDel(gone); err != nil {
			return err
		}
		err := await(ctx, heard, func(u netlink.NeighUpdate) bool {
			return u.Type == unix.RTM_NEWNEIGH && (u.Family == unix.AF_BRIDGE) == (e.Kind == neigh.Self) &&
				u.IP.Equal(gone.IP) && u.HardwareAddr.String() == e.MAC.String() && u.State&netlink.NUD_PERMANENT != 0
		})
		if err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
		cfg.Record(row, time.Since(start))
	}
	return errors.Join(h.mustHave(all), h.mustHaveEntries(all))
}

// await reads until it is the one.
func await[T any](ctx context.Context, heard <-chan T, is func(T) bool) error {
	late := time.NewTimer(missing)
	defer late.Stop()
	for {
		select {
		case u, open := <-heard:
			if !open {
				return errors.New("the kernel tells no more")
			}
			if is(u) {
				return nil
			}
		case <-late.C:
			return fmt.Errorf("is not back after %s", missing)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
