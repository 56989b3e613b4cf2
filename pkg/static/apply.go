package static

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/pkg/forward"
	"github.com/underlay-cni/underlay/pkg/link"
)

// checkPeers finds peers that no route can lead to.
func (h Host) checkPeers(n Network) error {
	for i, p := range n.Peers {
		if err := h.checkPeer(p); err != nil {
			return fmt.Errorf("peers[%d].via: %w", i, err)
		}
	}
	return nil
}

func (h Host) checkPeer(p Peer) error {
	path, err := h.Links.PathTo(p.Via)
	if err == nil && !path.Own && !path.Connected {
		err = fmt.Errorf("%s is on no segment that this host is on; a direct route leads to a neighbour only", p.Via)
	}
	return err
}

// applyRoutes makes the routes what all networks together tell, and has the host
// forward what comes in from peers. What cannot be is an error if it is of the
// network that is being changed: others have been told of theirs.
// Of those that nobody wants it deletes, unless only is nil, those alone.
func (h Host) applyRoutes(all map[string]*state, network string, only map[netip.Prefix]bool) error {
	routes, err := h.Links.RoutesBy(Protocol)
	if err != nil {
		return err
	}
	have := routes[:0]
	for _, r := range routes {
		// Another plugin may have static peers over a tunnel, by routes that are onlink.
		if !r.Onlink && r.GW.IsValid() {
			have = append(have, r)
		}
	}
	wanted := make(map[netip.Prefix]netip.Addr)
	var errs []error
	for _, s := range inOrder(all, network) {
		for i, p := range s.Peers {
			via, taken := wanted[p.Prefix]
			if !taken {
				wanted[p.Prefix] = p.Via
				err = h.routeTo(p, have)
			} else if via != p.Via {
				err = fmt.Errorf("another network of this host has %s via %s", p.Prefix, via)
			} else {
				continue
			}
			if err != nil && s.Name == network {
				errs = append(errs, fmt.Errorf("peers[%d]: %w", i, err))
			}
		}
	}
	for _, r := range have {
		if _, is := wanted[r.Dst]; !is && (only == nil || only[r.Dst]) {
			errs = append(errs, h.Links.DeleteRouteBy(Protocol, r.Link(), r.Dst))
		}
	}
	return errors.Join(errs...)
}

// inOrder has the network that is being changed last: who came first keeps a
// prefix.
func inOrder(all map[string]*state, last string) []*state {
	var names []string
	for name := range all {
		if name != last {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if all[last] != nil {
		names = append(names, last)
	}
	out := make([]*state, len(names))
	for i, name := range names {
		out[i] = all[name]
	}
	return out
}

// routeTo makes the route to a peer, unless it is among those that are there.
func (h Host) routeTo(p Peer, have []link.Route) error {
	path, err := h.Links.PathTo(p.Via)
	if err != nil || path.Own {
		return err
	}
	if !path.Connected {
		return h.checkPeer(p)
	}
	if p.Prefix.Addr().Is4() {
		err = forward.IPv4(path.Link.Name)
	} else {
		err = forward.IPv6(path.Link.Name)
	}
	if err != nil {
		return err
	}
	r := link.Route{Dst: p.Prefix, GW: p.Via, Protocol: Protocol, Scope: -1}
	i := slices.IndexFunc(have, func(h link.Route) bool { return h.Dst == p.Prefix })
	switch {
	case i < 0:
		return h.Links.InsertRoute(path.Link.Index, r)
	case have[i].GW == p.Via && have[i].Link() == path.Link.Index:
		return nil
	}
	return h.Links.ReplaceRoute(path.Link.Index, r)
}
