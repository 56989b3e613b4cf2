package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/leases"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/agent/network/subnetenv"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// SubnetFile is a file in flannel's form, by which others on this node hear of a
// block whose addresses they give out; see package leases for what that means
// for the block.
type SubnetFile struct {
	// Path of the file, absolute; required.
	Path string
	// Network whose block it is; required.
	Network string
	// IPMasq: what their containers send out of the network's pool gets an address
	// of this host.
	IPMasq bool
}

// Loan is what the node's part in the cluster is to lend for the file.
func (t *Task) Loan() *leases.Loan {
	if t.conf.RunDir == "" {
		return nil
	}
	l := &leases.Loan{RunDir: t.conf.RunDir, Over: t.unused, Told: t.lentOrNot}
	if f := t.conf.SubnetFile; f != nil {
		l.Network, l.To = f.Network, f.Path
	}
	return l
}

// lentOrNot hears of what is lent, and of what is not.
func (t *Task) lentOrNot(why error) {
	t.mu.Lock()
	t.unlent = why
	t.mu.Unlock()
	t.Stir()
}

// unused reports whether nobody uses a block that was lent by a file: the file is
// gone, no interface is on the subnet that the block is, as a bridge of the
// readers' would be, and no route leads to an address of it.
func (t *Task) unused(path string, block netip.Prefix) bool {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	t.mu.Lock()
	host := t.kernel
	t.mu.Unlock()
	if host == nil {
		return false
	}
	var all []netip.Addr
	lease.Block{CIDR: block}.Addrs(func(a netip.Addr) bool {
		all = append(all, a)
		return true
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := host.Read(ctx, all)
	if err != nil || len(s.Reach) > 0 {
		return false
	}
	for _, l := range s.Links {
		if slices.ContainsFunc(l.Addrs, func(a hostnet.Addr) bool { return !a.IsSingleIP() && block.Contains(a.Addr()) }) {
			return false
		}
	}
	return true
}

// tell has the subnet file say what is lent; why is what keeps it from that.
func (t *Task) tell(now round) (why error) {
	f := t.conf.SubnetFile
	if f == nil || now.snapshot == nil {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("subnetFile %q: %w", f.Path, err) }
	n, known := now.snapshot.Network(f.Network)
	switch {
	case !known:
		return fail(fmt.Errorf("the registry knows no network %q; see: underlayctl network list", f.Network))
	case !now.synced[n.Name]:
		return nil // whoever starts by it finds no routes; what is wrong is told apart
	}
	lent, err := leases.ReadLent(t.conf.RunDir)
	if err != nil {
		return fail(err)
	}
	e := subnetenv.Env{Networks: n.Prefixes, IPMasq: f.IPMasq, MTU: t.mtu(now, n)}
	for _, l := range lent {
		if l.To == f.Path && l.Pool == n.Pool {
			e.Subnets = append(e.Subnets, l.Block)
		}
	}
	t.mu.Lock()
	unlent := t.unlent
	t.mu.Unlock()
	switch {
	case len(e.Subnets) == 0 && unlent == nil:
		return nil // a block is about to be lent
	case len(e.Subnets) == 0:
		return fail(unlent)
	case e.MTU <= 0:
		return fail(errors.New("no parent has an address, so the MTU is not known"))
	}
	if why := t.rules.why(); f.IPMasq && why != nil {
		// The readers would leave to us what we cannot do.
		return fail(fmt.Errorf("ipMasq: %w", why))
	}
	changed, err := e.Write(f.Path)
	if err != nil {
		return fail(err)
	}
	if changed {
		t.log.Info("wrote the subnet file", "path", f.Path, "network", n.Name, "subnets", e.Subnets, "mtu", e.MTU)
	}
	if unlent != nil {
		return fail(unlent) // of one family there is none
	}
	return nil
}

// mtu is the largest that goes on the way to any peer: that of the smallest
// parent, less what VXLAN takes of it. It is 0 where there is none.
func (t *Task) mtu(now round, n plan.Network) (mtu int) {
	for _, dev := range t.parents.devs(now.state) {
		if l, there := now.state.Link(dev); there && (mtu == 0 || l.MTU < mtu) {
			mtu = l.MTU
		}
	}
	if n.Backend != record.VXLAN || mtu == 0 {
		return mtu
	}
	for _, o := range now.plan.Overlays {
		if o.Device.Network == n.Name {
			return vxlan.MTU(mtu, o.Device.Local)
		}
	}
	return 0
}
