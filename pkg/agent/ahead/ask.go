package ahead

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/pkg/arp"
	"github.com/underlay-cni/underlay/pkg/link"
)

const (
	// listen is how long others have to answer. Half a second is what sleeping
	// hosts take at times, which nobody here waits for.
	listen = 200 * time.Millisecond
	// slice is how soon the end of the agent is heeded.
	slice = 50 * time.Millisecond
)

// ask asks once for each address, from an interface of this process's network
// namespace. One that is not there, as a VLAN's without users, or that is down
// leads to nobody.
func ask(ctx context.Context, wire string, addrs []netip.Addr) (found []arp.Conflict, err error) {
	h, err := link.Open()
	if err != nil {
		return nil, err
	}
	l, err := h.ByName(wire)
	h.Close()
	if errors.Is(err, link.ErrNotFound) || err == nil && !l.Up {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := arp.Open(arp.Iface{Name: l.Name, Index: l.Index, MAC: l.MAC}, addrs)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	p.ClaimsOnly()
	if err := p.Probe(); err != nil {
		return nil, err
	}
	seen := map[netip.Addr]bool{}
	for end := time.Now().Add(listen); ctx.Err() == nil; {
		left := time.Until(end)
		if left <= 0 {
			break
		}
		more, err := p.Conflicts(min(left, slice))
		if err != nil {
			return nil, err
		}
		for _, c := range more {
			if !seen[c.Addr] {
				seen[c.Addr] = true
				found = append(found, c)
			}
		}
	}
	return found, nil
}
