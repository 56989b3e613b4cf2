// Package static keeps what a host needs to reach the containers of others where
// no agent does so: for networks whose configuration tells their peers, routes
// to these, and rules that accept and masquerade.
//
// There is one small file for each network, with its peers and with the
// attachments that it has on this host; it goes with the last of them. What the
// kernel has is made of all files together, so one network takes nothing away
// from another, and what a configuration no longer says goes with the next ADD.
// The files carry the boot's ID: what they tell did not survive a reboot.
//
// Routes of ours carry a protocol number of their own, and the rules are in a
// table of their own, beside those of the agent. Of others' nothing is changed.
package static

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
)

// Protocol is the number that our routes carry; the agent's have another.
const Protocol = 142

// Table is the name of the nftables table, of family inet.
const Table = "underlay-static"

// Network is one as its configuration tells it.
type Network struct {
	Name string `json:"network"`
	// Peers are the prefixes of other hosts.
	Peers []Peer `json:"peers,omitempty"`
	// Masquerade: what leaves the network gets an address of the host.
	Masquerade bool `json:"masquerade,omitempty"`
}

// Peer is a prefix of another host, and that host's address. One whose address
// is of this host itself is left out, so that all can have the same list.
type Peer struct {
	Prefix netip.Prefix `json:"prefix"`
	Via    netip.Addr   `json:"via"`
}

// Attachment is one of a network.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	// Prefixes that its addresses are of.
	Prefixes []netip.Prefix `json:"prefixes"`
	Since    time.Time      `json:"since"`
}

func (a Attachment) is(b Attachment) bool {
	return a.ContainerID == b.ContainerID && a.IfName == b.IfName
}

// Host is a host whose networks are kept. Its methods act in the namespace of
// the calling thread.
type Host struct {
	// Dir has the files. Required.
	Dir string
	// Links is a handle on the same namespace. Required.
	Links *link.Handle
	// Notes gets what people should know though nothing failed. Required.
	Notes io.Writer
	// FixDrop has the command run that lets our packets pass where somebody else
	// drops what is forwarded; else it is told.
	FixDrop bool
}

// Join makes what an attachment of a network needs. An error about a peer names
// it as "peers[0].via". What a failed Join has made, Leave takes back.
func (h Host) Join(ctx context.Context, n Network, a Attachment) error {
	if err := h.checkPeers(n); err != nil {
		return err
	}
	return h.update(ctx, n.Name, func(all map[string]*state) bool {
		s := all[n.Name]
		if s == nil {
			s = &state{Version: version}
			all[n.Name] = s
		}
		i := slices.IndexFunc(s.Attachments, a.is)
		if i >= 0 && same(s.Network, n) && slices.Equal(s.Attachments[i].Prefixes, a.Prefixes) {
			return false
		}
		if i >= 0 {
			s.Attachments = slices.Delete(s.Attachments, i, i+1)
		}
		s.Network = n
		a.Since = fault.Now().UTC()
		s.Attachments = append(s.Attachments, a)
		return true
	})
}

// Has reports whether an attachment has joined a network. What cannot be read
// has not.
func (h Host) Has(network string, a Attachment) bool {
	all, _, err := h.read()
	return err == nil && all[network] != nil && slices.ContainsFunc(all[network].Attachments, a.is)
}

// Leave takes back what Join has made, as far as nobody else needs it. That
// there is nothing is success.
func (h Host) Leave(ctx context.Context, network string, a Attachment) error {
	return h.remove(ctx, network, a.is)
}

// Prune is Leave for all attachments of a network that were made before a time
// and that valid does not name.
func (h Host) Prune(ctx context.Context, network string, before time.Time, valid func(containerID, ifName string) bool) error {
	return h.remove(ctx, network, func(a Attachment) bool {
		return a.Since.Before(before) && !valid(a.ContainerID, a.IfName)
	})
}

func (h Host) remove(ctx context.Context, network string, gone func(Attachment) bool) error {
	if !h.knows(network) {
		return nil
	}
	return h.update(ctx, network, func(all map[string]*state) bool {
		s := all[network]
		if s == nil {
			return true // of another boot, and no file is to be left
		}
		left := s.Attachments[:0]
		for _, a := range s.Attachments {
			if !gone(a) {
				left = append(left, a)
			}
		}
		changed := len(left) != len(s.Attachments)
		if s.Attachments = left; len(left) == 0 {
			delete(all, network)
		}
		return changed
	})
}

// Check reports how the host differs from what Join has made.
func (h Host) Check(n Network, a Attachment) error {
	all, odd, err := h.read()
	if err == nil {
		err = odd[n.Name]
	}
	if err != nil {
		return err
	}
	s := all[n.Name]
	if s == nil || !slices.ContainsFunc(s.Attachments, a.is) {
		return fmt.Errorf("%s does not tell of the attachment", h.file(n.Name))
	}
	have, err := h.Links.RoutesBy(Protocol)
	if err != nil {
		return err
	}
	for i, p := range n.Peers {
		there := slices.ContainsFunc(have, func(r link.Route) bool { return r.Dst == p.Prefix && r.GW == p.Via })
		if there {
			continue
		}
		if path, err := h.Links.PathTo(p.Via); err != nil || path.Own {
			if err != nil {
				return err
			}
			continue
		}
		return fmt.Errorf("peers[%d]: the route to %s via %s is missing", i, p.Prefix, p.Via)
	}
	if !n.Masquerade {
		return nil
	}
	there, err := tableExists()
	if err == nil && !there {
		err = fmt.Errorf("ipMasq: nftables table inet %s is missing", Table)
	}
	return err
}

// same compares what two configurations tell.
func same(a, b Network) bool {
	return a.Name == b.Name && a.Masquerade == b.Masquerade && slices.Equal(a.Peers, b.Peers)
}

// Ready reports why Join of a network would fail, as far as the program nft is
// the reason, and tells who drops what is forwarded.
func (h Host) Ready(ctx context.Context, n Network) error {
	err := h.checkPeers(n)
	if !hasProgram() {
		if n.Masquerade {
			err = errors.Join(err, ErrNoProgram)
		}
		return err
	}
	return errors.Join(err, h.tellDrops(ctx, false))
}
