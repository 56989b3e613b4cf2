// Package bridges takes from the node bridges that hostgw has made the gateway
// addresses of blocks that this node does not have any more. A bridge gets one for
// each block that its containers have addresses of, and would keep it as long as
// there is any container: by then another node may have the block, to whose
// containers no packet would find its way.
//
// Left out: bridges of others, which hostgw gives no addresses to.
package bridges

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/pkg/flock"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// Trim deletes the addresses of a bridge whose subnets are foreign, and returns
// them. A bridge that is none of ours, or gone, keeps what it has. No ADD can give
// it an address meanwhile: runDir has the lock that these take.
func Trim(ctx context.Context, ns *netns.NS, runDir, bridge string, foreign func(netip.Prefix) (bool, error)) (gone []netip.Prefix, err error) {
	fd := -1
	if ns != nil {
		fd = ns.Fd()
	}
	h, err := link.OpenAt(fd)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	// Others' locks are none of ours: whether it is our bridge is seen before.
	if l, err := h.ByName(bridge); err != nil || !ours(l) {
		return nil, unlessGone(err)
	}
	unlock, err := flock.Parent(ctx, runDir, bridge)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := h.ByName(bridge)
	if err != nil || !ours(l) {
		return nil, unlessGone(err)
	}
	addrs, err := h.Addrs(l.Index)
	for _, a := range addrs {
		is, ferr := foreign(a.Masked())
		if ferr == nil && is {
			if ferr = h.DeleteAddr(l.Index, a.Prefix); ferr == nil {
				gone = append(gone, a.Prefix)
			}
		}
		if ferr != nil {
			err = errors.Join(err, fmt.Errorf("address %s of bridge %q: %w", a.Prefix, bridge, ferr))
		}
	}
	return gone, err
}

func ours(l link.Link) bool { return l.Kind == "bridge" && l.Alias == link.SharedAlias }

func unlessGone(err error) error {
	if errors.Is(err, link.ErrNotFound) {
		return nil
	}
	return err
}
