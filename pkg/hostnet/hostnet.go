// Package hostnet reads what of a host's own network decides how its peers are
// reached: the subnets that its interfaces are on, the interfaces of its default
// routes, and whether a neighbour answers; and it has the host forward packets
// that come in by an interface.
//
// It changes no interface, address or route, and leaves out other tables than
// the main one, and links that have no address of more than their own scope.
package hostnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Link is an interface with addresses.
type Link struct {
	Name string
	// Up is the administrative state.
	Up bool
	// MTU in octets.
	MTU int
	// Broadcast: whoever is on the link is found by asking all of it, as on
	// Ethernet; not on a tunnel, and not where ARP is off.
	Broadcast bool
	// Addrs are the global ones, with the length of their subnet, in the kernel's
	// order.
	Addrs []Addr
}

// Addr is an address of a link.
type Addr struct {
	netip.Prefix
	// Passing: it is temporary, or on its way out; others should not count on it.
	Passing bool
}

// State is what a Host has.
type State struct {
	// Links by name.
	Links []Link
	// Default are the interfaces of the default routes, that of IPv4 first.
	Default []string
	// Reach has the interface by which each address that was asked for is reached;
	// none if there is no way.
	Reach map[netip.Addr]string
}

// Equal reports whether nothing is different.
func (s State) Equal(o State) bool {
	return slices.EqualFunc(s.Links, o.Links, func(a, b Link) bool {
		return a.Name == b.Name && a.Up == b.Up && a.MTU == b.MTU && a.Broadcast == b.Broadcast && slices.Equal(a.Addrs, b.Addrs)
	}) && slices.Equal(s.Default, o.Default) && equal(s.Reach, o.Reach)
}

func equal(a, b map[netip.Addr]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// Link returns the link of a name.
func (s State) Link(name string) (Link, bool) {
	i := slices.IndexFunc(s.Links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{}, false
	}
	return s.Links[i], true
}

// Neighbour is an address on the link of an interface.
type Neighbour struct {
	Dev  string
	Addr netip.Addr
}

// Answer is what is known of a Neighbour.
type Answer uint8

const (
	// Unknown: it was not asked, or not long enough.
	Unknown Answer = iota
	// Found: it has answered.
	Found
	// Silent: it has not.
	Silent
	// Asking: it was asked, and has time left.
	Asking
)

// String names it.
func (a Answer) String() string {
	return [...]string{"unknown", "found", "silent", "asking"}[a]
}

// Host is the network of a namespace. It is safe for concurrent use.
type Host struct {
	ns *netns.NS // nil: that of the process

	mu    sync.Mutex
	conn  *nlsock.Conn
	names *nlsock.Names
}

// Open opens the network of a namespace, which has to stay open; nil means that
// of the calling thread, which has to be the process's.
func Open(ns *netns.NS) (*Host, error) {
	fd := -1
	if ns != nil {
		fd = ns.Fd()
	}
	conn, err := nlsock.Dial(fd)
	if err != nil {
		return nil, fmt.Errorf("host network: %w", err)
	}
	return &Host{ns: ns, conn: conn, names: nlsock.NewNames(conn)}, nil
}

// Close ends the connection to the kernel.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn.Close()
	return nil
}

// with runs f, which has the connection, in turn.
func (h *Host) with(ctx context.Context, what string, f func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := ctx.Err()
	if err == nil {
		err = f()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// do runs f where /proc/sys is that of the namespace.
func (h *Host) do(f func() error) error {
	if h.ns == nil {
		return f()
	}
	return h.ns.Do(f)
}
