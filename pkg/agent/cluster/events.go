package cluster

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// state of the registry as the last event has it.
type state uint8

const (
	unknown state = iota
	connected
	away
	frozen
)

// turnLocked tells that the registry is in another state than before. The
// trouble that it comes with is then not logged beside the event.
func (c *Cluster) turnLocked(to state, why error) {
	if c.state == to {
		return
	}
	c.state = to
	e := api.Event{Kind: api.RegistryConnected, Text: "the registry is followed"}
	switch to {
	case away:
		e = api.Event{Kind: api.RegistryAway, Text: fmt.Sprintf("the registry is out of reach, and this node keeps what it has: %v", why)}
	case frozen:
		e = api.Event{Kind: api.RegistryFrozen, Text: why.Error()}
	}
	if why != nil {
		c.quiet = why.Error()
	}
	c.conf.Events.Add(e)
}

// followedLocked tells that there is a view of the registry again. One that is
// frozen is so until a round is done.
func (c *Cluster) followedLocked() {
	if c.state != frozen {
		c.turnLocked(connected, nil)
	}
}

// tellLocked logs a trouble when it is another one than before; nil ends it.
func (c *Cluster) tellLocked(what string, err error) {
	text := ""
	if err != nil {
		text = what + ": " + err.Error()
	}
	if text == c.told {
		return
	}
	c.told = text
	if err != nil && err.Error() != c.quiet {
		c.log.Warn(what, "err", err)
	}
}

// renew makes the ledger another node's, after an operator removed this
// one. Whoever said that it was off has to hear of what runs on it.
func (c *Cluster) renew() error {
	return c.conf.Ledger.With(func(l *ledger.Ledger) error {
		old, err := l.Node()
		if err != nil {
			return err
		}
		id, err := l.Renew()
		if err != nil {
			return err
		}
		c.conf.Events.Add(api.Event{Kind: api.NodeRenewed, Node: string(old),
			Text: fmt.Sprintf("this node was removed from the cluster; it joins as a new one, %s, and what it leased is gone", id)})
		i, err := l.Identity()
		if err != nil {
			return err
		}
		return l.Records(func(r ipam.Record) error {
			if r.PoolUUID != "" && r.State == ipam.Held && r.BootID == i.Boot {
				c.metrics.lost.Inc()
				c.conf.Events.Add(lost(r, "a container has an address that is free for other nodes, since this node was removed; stop it"))
			}
			return nil
		})
	})
}

// lost is the event of an address that is in use here, and not this node's.
func lost(r ipam.Record, text string) api.Event {
	return api.Event{Kind: api.AddressLost, Network: r.Attachment.Network, Container: r.Attachment.ContainerID, IfName: r.Attachment.IfName,
		Pool: r.Pool, Addr: r.Address.Addr(), Text: text}
}

// tellPoolsLocked tells which pools are others than they were when it was
// called last. The first time nobody knows what they were.
func (c *Cluster) tellPoolsLocked() {
	tell := func(name, what string) {
		c.conf.Events.Add(api.Event{Kind: api.PoolChanged, Pool: name, Text: "a cluster pool was " + what + " by an operator"})
	}
	now := map[string]registry.Kept[record.Pool]{}
	for _, name := range slices.Sorted(maps.Keys(c.view.Pools)) {
		p := c.view.Pools[name]
		before, known := c.pools[name]
		switch {
		case p.Value.State == record.Pending:
			continue // others are looked at before it is made
		case c.pools == nil, known && before.Rev == p.Rev:
		case !known:
			tell(name, "made")
		case !same(before.Value, p.Value):
			tell(name, "changed")
		}
		now[name] = p
	}
	for name, before := range c.pools {
		switch _, there := c.view.Pools[name]; {
		case there:
		case c.view.Unread[record.PoolFolder+name] != nil:
			now[name] = before // nobody knows what it is now
		default:
			tell(name, "deleted")
		}
	}
	c.pools = now
}

// same compares pools, but for the state that they go through while they are
// changed.
func same(a, b record.Pool) bool {
	a.State, b.State = "", ""
	return bytes.Equal(record.EncodePool(a), record.EncodePool(b))
}

// tellLearned tells what has come to this node, or gone from it, by a record that
// the ledger has taken in. Parking for a sticky owner is none of it: that comes
// with every release.
func (c *Cluster) tellLearned(p record.Pool, before lease.Book, s lease.Seen) {
	me := before.Node
	var leased, returned int
	var claimed []netip.Addr
	given := map[lease.Node][]netip.Addr{}
	s.Block.Addrs(func(a netip.Addr) bool {
		_, had := before.Marks[a]
		has := s.Block.Has(me, a)
		entry, apart := s.Block.Given[a]
		switch {
		case has && !had && apart:
			claimed = append(claimed, a)
		case has && !had:
			leased++
		case had && !has && !apart:
			returned++
		case had && !has && entry.Node != "":
			given[entry.Node] = append(given[entry.Node], a)
		}
		return true
	})
	tell := func(kind api.EventKind, node lease.Node, text string) {
		e := api.Event{Kind: kind, Pool: p.Name, Block: s.Block.CIDR, Text: text}
		if node != "" {
			e.Node = c.nameOf(node)
		}
		c.conf.Events.Add(e)
	}
	if leased > 0 {
		tell(api.BlockLeased, "", fmt.Sprintf("leased a block, with %d addresses", leased))
	}
	if returned > 0 {
		tell(api.BlockReturned, "", fmt.Sprintf("returned a block, with %d addresses", returned))
	}
	if len(claimed) > 0 {
		tell(api.AddressesClaimed, s.Block.Owner, "has addresses of a block that is not this node's: "+list(claimed))
	}
	for _, n := range slices.Sorted(maps.Keys(given)) {
		tell(api.AddressesGiven, n, "gave addresses to another node: "+list(given[n]))
	}
}

func (c *Cluster) nameOf(n lease.Node) string {
	if c.view == nil {
		return string(n)
	}
	return who(c.view.Nodes[n].Value.Name, n)
}

// who is a node for people.
func who(name string, n lease.Node) string {
	if name != "" {
		return name
	}
	return string(n)
}

// list says which addresses, and of many only the first.
func list(addrs []netip.Addr) string {
	const most = 8
	var out []string
	for i, a := range addrs {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(addrs)-most))
			break
		}
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
