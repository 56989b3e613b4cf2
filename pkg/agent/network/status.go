package network

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/reconcile"
	"github.com/underlay-cni/underlay/pkg/route"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// Peers tells how the peers of a network are reached, or of all if that is "".
func (t *Task) Peers(network string) []api.Peer {
	out := []api.Peer{}
	t.peers(func(p plan.Peer, via netip.Addr, state api.PeerState, reason string) {
		if network == "" || p.Network == network {
			out = append(out, api.Peer{
				Network: p.Network, NodeName: api.NodeName{Node: string(p.Node), Name: p.Name}, Address: p.Address, Dev: p.Dev, Via: via,
				Prefixes: p.Blocks, State: state, Reason: reason,
			})
		}
	})
	return out
}

// peers calls f with each peer, by what gateway it is reached, and how.
func (t *Task) peers(f func(p plan.Peer, via netip.Addr, state api.PeerState, reason string)) {
	t.mu.Lock()
	p, routes := t.now.plan, t.routes
	t.mu.Unlock()
	if p == nil {
		return
	}
	status := make(map[route.Route]route.Status)
	for _, s := range routes.Status() {
		if s.Peer != "" || s.Err != nil {
			status[s.Object] = s
		}
	}
	failed := make(map[string]map[string]error) // by device and name of the peer
	for _, o := range p.Overlays {
		failed[vxlan.Name(o.Device.VNI)] = reconcile.ByPeer(t.overlays.Status(o.Device.VNI))
	}
	for _, peer := range p.Peers {
		state, reason := t.stateOf(peer, p, status)
		if err := failed[peer.Dev][plan.Who(peer)]; err != nil && state == api.PeerVXLAN {
			state, reason = api.PeerFailed, oneLine(err)
		}
		var via netip.Addr
		if len(peer.Wants) > 0 {
			via = p.Wants[peer.Wants[0]].Object.Via
		}
		f(peer, via, state, reason)
	}
}

func (t *Task) stateOf(peer plan.Peer, p *plan.Plan, status map[route.Route]route.Status) (api.PeerState, string) {
	if peer.Dev == "" {
		return api.PeerUnreachable, peer.Reason
	}
	for _, i := range peer.Wants {
		switch s, known := status[p.Wants[i].Object]; {
		case !known, errors.Is(s.Err, reconcile.ErrPending):
			return api.PeerPending, "its routes have not been tried yet"
		case s.Err != nil:
			return api.PeerFailed, oneLine(s.Err)
		}
	}
	if peer.VXLAN {
		return api.PeerVXLAN, peer.Reason
	}
	if t.probes.answer(peer.Near) == hostnet.Silent {
		return api.PeerSilent, "nobody answers at " + peer.Address.String()
	}
	return api.PeerDirect, ""
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// Routing tells how far this node is with what its routes to peers need.
func (t *Task) Routing() api.Routing {
	t.mu.Lock()
	now, addrs, drops := t.now, t.addrs, t.drops
	t.mu.Unlock()
	out := api.Routing{Addresses: append([]netip.Addr{}, addrs...), Networks: []api.RoutingNetwork{}, Drops: []api.ForwardDrop{}, Skipped: []api.SkippedRecord{}}
	if err := t.rules.why(); err != nil {
		out.Rules = err.Error()
	}
	for _, d := range drops {
		out.Drops = append(out.Drops, api.ForwardDrop{Chain: d.Chain, Command: strings.Join(d.Command, " "), Passes: d.Passes})
	}
	if now.snapshot == nil {
		return out
	}
	for _, n := range now.snapshot.Networks {
		own := []netip.Prefix{}
		for _, b := range n.Blocks {
			if b.Owner == now.snapshot.Me {
				own = append(own, b.CIDR)
			}
		}
		out.Networks = append(out.Networks, api.RoutingNetwork{
			Name: n.Name, Backend: n.Backend, Pool: n.Pool, Prefixes: append([]netip.Prefix{}, n.Prefixes...), Own: own,
			Synced: now.synced[n.Name], Masquerade: now.masquerade[n.Name], Reason: t.lacking(n),
		})
	}
	for _, o := range now.snapshot.Odd {
		out.Skipped = append(out.Skipped, api.SkippedRecord{Network: o.Network, Node: string(o.Node), Block: o.Block, Reason: o.Why})
	}
	return out
}
