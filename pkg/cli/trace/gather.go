package trace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// kernel is what is asked of it.
type kernel interface {
	// PathTo is the way from the host to an address.
	PathTo(netip.Addr) (link.Path, error)
	// Answer is what is known of a neighbour of the host.
	Answer(hostnet.Neighbour) (hostnet.Answer, error)
	// Attached is the link of an attachment in its container, and the name of its
	// parent on the host, if it has one.
	Attached(ipam.Record) (l link.Link, parent string, err error)
}

// agent is what is asked of it. *api.Client implements it.
type agent interface {
	Node(context.Context) (api.Node, error)
	Peers(ctx context.Context, network string) ([]api.Peer, error)
	Routing(context.Context) (api.Routing, error)
	Leases(context.Context, api.LeaseFilter) ([]api.Lease, error)
	Segment(ctx context.Context, vni int) (api.SegmentDetail, error)
}

// gather finds what is known of the two ends.
func gather(ctx context.Context, b book.Book, a agent, k kernel, from, to netip.Addr) (facts, error) {
	f := facts{node: "this node", from: end{addr: from}, to: end{addr: to}}
	for _, e := range []*end{&f.from, &f.to} {
		var err error
		if e.path, err = k.PathTo(e.addr); err != nil {
			return f, err
		}
		if n, ok := neighbour(e.path, e.addr); ok {
			if e.answer, err = k.Answer(n); err != nil {
				return f, err
			}
		}
	}
	if err := f.held(b, k); err != nil {
		return f, err
	}
	f.unknown = f.ask(ctx, a)
	if f.from.record != nil || f.from.path.Own {
		return f, nil
	}
	if owner := f.from.owner; owner != "" && owner != f.node {
		return f, fmt.Errorf("%s is an address of node %s: run this there", from, owner)
	}
	if p := f.from.peer; p != nil {
		return f, fmt.Errorf("%s is in a block of node %s: run this there", from, p.Name)
	}
	return f, fmt.Errorf("%s is no address of this host, and no container of it has it; see: underlayctl address list", from)
}

// held finds the containers of this node.
func (f *facts) held(b book.Book, k kernel) error {
	ends := []*end{&f.from, &f.to}
	err := b.Records(func(r ipam.Record) error {
		for _, e := range ends {
			if r.State == ipam.Held && r.Address.Addr() == e.addr {
				e.record = &r
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range ends {
		if e.record == nil {
			continue
		}
		att, _, _, err := b.Attachment(e.record.Attachment)
		if err != nil {
			return err
		}
		e.uses = att.Uses
		if e.link, e.parent, err = k.Attached(*e.record); err != nil {
			return fmt.Errorf("the link of %s: %w", e, err)
		}
	}
	return nil
}

// ask asks the agent for what other nodes have.
func (f *facts) ask(ctx context.Context, a agent) error {
	n, err := a.Node(ctx)
	if err != nil {
		return fmt.Errorf("which node has which block: %w", err)
	}
	f.node = n.Name
	if vni := f.from.uses.Segment.VNI; vni != 0 {
		s, err := a.Segment(ctx, vni)
		if err != nil {
			return fmt.Errorf("who is in segment %d: %w", vni, err)
		}
		f.segment = &s
	}
	peers, err := a.Peers(ctx, "")
	if errors.Is(err, api.ErrNoRegistry) {
		return nil // there are no others
	}
	routing, rerr := api.Routing{}, error(nil)
	var leases []api.Lease
	if err == nil {
		routing, rerr = a.Routing(ctx)
		leases, err = a.Leases(ctx, api.LeaseFilter{})
	}
	for _, e := range []*end{&f.from, &f.to} {
		e.place(peers, routing, leases)
	}
	if err = errors.Join(err, rerr); err != nil {
		return fmt.Errorf("which node has which block: %w", err)
	}
	return nil
}

// place finds in whose block an address is.
func (e *end) place(peers []api.Peer, routing api.Routing, leases []api.Lease) {
	for i, p := range peers {
		if contain(p.Prefixes, e.addr) {
			e.peer = &peers[i]
		}
	}
	for _, n := range routing.Networks {
		if contain(n.Own, e.addr) {
			e.network = n.Name
		}
	}
	for _, l := range leases {
		if !l.CIDR.Contains(e.addr) {
			continue
		}
		owner := l.Owner
		for _, g := range l.Given {
			if g.Address == e.addr {
				owner = g.Node
			}
		}
		if owner != nil {
			e.owner = owner.Name
		}
	}
}

func contain(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// host is the kernel of this machine, in the namespace of this process.
type host struct{ *link.Handle }

// Answer implements kernel.
func (h host) Answer(n hostnet.Neighbour) (hostnet.Answer, error) {
	network, err := hostnet.Open(nil)
	if err != nil {
		return hostnet.Unknown, err
	}
	defer network.Close()
	all, err := network.Answers(context.Background(), []string{n.Dev})
	return all[n], err
}

// Attached implements kernel.
func (h host) Attached(r ipam.Record) (l link.Link, parent string, err error) {
	ns, err := netns.Find(r.Netns.Path, r.Netns.Dev, r.Netns.Inode)
	if err != nil {
		return l, "", err
	}
	defer ns.Close()
	inside, err := link.OpenAt(ns.Fd())
	if err != nil {
		return l, "", err
	}
	defer inside.Close()
	if l, err = inside.ByName(r.Attachment.IfName); err != nil {
		return l, "", err
	}
	if l.Kind != "macvlan" && l.Kind != "ipvlan" || l.Parent == 0 {
		return l, "", nil
	}
	on, err := h.ByIndex(l.Parent)
	return l, on.Name, err
}
