// Package nft keeps the nftables table "underlay" as it is wanted: packets from
// and to our prefixes are accepted and marked, what leaves the cluster is
// masqueraded, and VXLAN is taken only from VTEPs that are known.
//
// The table is one object: it is compared as a whole with what is there, and
// what differs is written in one transaction, so that no packet ever meets a
// part of it. Where only prefixes or addresses differ, only those are written;
// else the table is made anew. Other tables are never touched.
//
// Our accept cannot overrule a drop elsewhere; Drops finds those, and names the
// command that lets marked packets pass. The package needs the program nft. It
// leaves out legacy iptables, but for looking whether its policy is in the way.
package nft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/nft/drop"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Mark is the bit that accepted packets carry.
const Mark = drop.Mark

// Drop is a policy of somebody else that drops what is forwarded.
type Drop = drop.Drop

// Drops finds those that are in the way; see drop.Find.
func Drops(ctx context.Context, n *netns.NS) ([]Drop, error) { return drop.Find(ctx, n) }

// Ruleset is what is wanted. The zero value is no table at all.
type Ruleset struct {
	// Forward are the prefixes of all pools: packets from and to them are accepted
	// and marked, unless nobody drops what is forwarded (Unopposed), when that would
	// only cost time.
	Forward   []netip.Prefix
	Unopposed bool
	// Masquerade are the prefixes whose packets get an address of this host when
	// they leave the cluster: those to Forward, to Nodes and to groups do not, and
	// neither do those from elsewhere.
	Masquerade []netip.Prefix
	// Nodes are the addresses of all nodes.
	Nodes []netip.Addr
	// Ports are UDP ports of VXLAN which take packets from VTEPs alone. None: all
	// ports take everything.
	Ports []uint16
	VTEPs []netip.Addr
}

// validate finds what no rule can be made of.
func (r Ruleset) validate() error {
	for _, p := range slices.Concat(r.Forward, r.Masquerade) {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			return fmt.Errorf("prefix %s: malformed", p)
		case p != p.Masked():
			return fmt.Errorf("prefix %s: it is that of %s", p, p.Masked())
		}
	}
	for _, a := range slices.Concat(r.Nodes, r.VTEPs) {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("address %s: malformed", a)
		}
	}
	if slices.Contains(r.Ports, 0) {
		return errors.New("port 0: there is none")
	}
	return nil
}

// outermost are the prefixes that are in no other, sorted: to the kernel, two
// that overlap are a conflict.
func outermost(prefixes []netip.Prefix) (out []netip.Prefix) {
	sorted := slices.SortedFunc(slices.Values(prefixes), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range sorted {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// Config says where the table is kept.
type Config struct {
	// Netns is the namespace; nil means that of the calling thread. It has to stay
	// open.
	Netns *netns.NS
	// Kernel is another one than the real one, such as a Fake. Optional.
	Kernel Kernel

	// Options as in reconcile.
	Retry, MaxRetry, Resync time.Duration
	// Changed is called when the table is no longer as wanted, with the reason,
	// and with nil when it is again. Optional.
	Changed func(error)
}

// Reconciler keeps the table.
type Reconciler struct {
	core *reconcile.Reconciler[struct{}, table]
}

// New finds nft. It writes nothing before the first Apply.
func New(cfg Config) (*Reconciler, error) {
	kernel := cfg.Kernel
	if kernel == nil {
		h, err := openHost(cfg.Netns)
		if err != nil {
			return nil, fmt.Errorf("nftables: %w", err)
		}
		kernel = h
	}
	opts := reconcile.Options[table]{Retry: cfg.Retry, MaxRetry: cfg.MaxRetry, Resync: cfg.Resync}
	if cfg.Changed != nil {
		opts.Changed = func(s reconcile.Status[table]) { cfg.Changed(s.Err) }
	}
	return &Reconciler{reconcile.New(kernel, opts)}, nil
}

// Apply makes the table what is wanted, and keeps it so from now on, if Run
// runs. What cannot be leaves the table as it was.
func (r *Reconciler) Apply(ctx context.Context, want Ruleset) error {
	if err := want.validate(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	var all []reconcile.Want[table]
	if t := want.table(); t != "" {
		all = append(all, reconcile.Want[table]{Object: t})
	}
	return r.core.Apply(ctx, all)
}

// Run keeps the table as it is wanted until ctx ends.
func (r *Reconciler) Run(ctx context.Context) error { return r.core.Run(ctx) }

// Err is why the table is not as wanted; nil if it is.
func (r *Reconciler) Err() error {
	err := r.core.Err()
	for _, s := range r.core.Status() {
		err = errors.Join(err, s.Err)
	}
	return err
}

// Counts tells how much there was to do.
func (r *Reconciler) Counts() reconcile.Counts { return r.core.Counts() }

// Close ends the connection to the kernel. The table stays.
func (r *Reconciler) Close() error { return r.core.Close() }
