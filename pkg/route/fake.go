package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Fake is a kernel's table without a kernel, for tests: it has links, addresses,
// and routes of ours and of others, refuses what the kernel refuses, and loses
// routes where the kernel does. It leaves out ECMP, secondary addresses and
// gateways behind other gateways. The zero value is ready. It is safe for
// concurrent use.
type Fake struct {
	reconcile.Herald

	mu     sync.Mutex
	links  []fakeLink
	routes []fakeRoute
	fail   error
	calls  int
}

type fakeLink struct {
	name  string
	up    bool
	addrs []netip.Prefix
}

type fakeRoute struct {
	Route
	foreign bool
}

var _ Kernel = (*Fake)(nil)

// List implements Kernel.
func (f *Fake) List(ctx context.Context) (out []Route, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(ctx.Err(), f.fail); err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range f.routes {
		if !r.foreign {
			out = append(out, r.Route)
		}
	}
	return out, nil
}

// Change implements Kernel.
func (f *Fake) Change(ctx context.Context, changes []reconcile.Change[Route]) ([]error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(ctx.Err(), f.fail); err != nil {
		return nil, fmt.Errorf("change routes: %w", err)
	}
	f.calls++
	verdicts := make([]error, len(changes))
	for i, c := range changes {
		var err error
		if c.Verb != reconcile.Delete {
			err = f.addLocked(fakeRoute{Route: c.New}, c.Verb == reconcile.Replace)
		}
		if c.Verb != reconcile.Add {
			f.routes = slices.DeleteFunc(f.routes, func(r fakeRoute) bool { return !r.foreign && r.Route == c.Old })
		}
		if err != nil {
			verdicts[i] = explain(c, err)
		}
	}
	return verdicts, nil
}

func (f *Fake) addLocked(r fakeRoute, beside bool) error {
	if !r.Unreachable {
		if err := f.reachesLocked(r.Route); err != nil {
			return err
		}
	}
	taken := slices.ContainsFunc(f.routes, func(o fakeRoute) bool {
		return o.Key() == r.Key() && (!beside || o.Route == r.Route)
	})
	if taken {
		return unix.EEXIST
	}
	f.routes = append(f.routes, r)
	return nil
}

// reachesLocked is what the kernel asks of a next hop.
func (f *Fake) reachesLocked(r Route) error {
	i := slices.IndexFunc(f.links, func(l fakeLink) bool { return l.name == r.Dev })
	switch {
	case i < 0:
		return fmt.Errorf("look up interface %q: %w", r.Dev, nlsock.ErrNoInterface)
	case r.Via.Is6() && f.localLocked(r.Via):
		return unix.EINVAL
	case r.Onlink && r.Via.Is6() && slices.ContainsFunc(f.links, func(l fakeLink) bool { return l.name != r.Dev && f.connectedLocked(l, r.Via) }):
		return unix.EINVAL // IPv6 knows it to be on another link
	case !f.links[i].up && (r.Onlink || !r.Via.IsValid()):
		return unix.ENETDOWN
	case r.Via.IsValid() && !r.Onlink && !f.connectedLocked(f.links[i], r.Via):
		if r.Via.Is4() {
			return unix.ENETUNREACH
		}
		return unix.EHOSTUNREACH
	case r.Src.IsValid() && !f.localLocked(r.Src):
		return unix.EINVAL
	}
	return nil
}

func (f *Fake) localLocked(a netip.Addr) bool {
	return slices.ContainsFunc(f.links, func(l fakeLink) bool {
		return slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

func (f *Fake) connectedLocked(l fakeLink, a netip.Addr) bool {
	return l.up && a.IsLinkLocalUnicast() ||
		l.up && slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) ||
		slices.ContainsFunc(f.routes, func(r fakeRoute) bool {
			return r.Dev == l.name && !r.Via.IsValid() && r.Dst.Contains(a)
		})
}

// Close implements Kernel.
func (f *Fake) Close() error { return nil }

// Fail makes List and Change fail with err; nil ends that.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Calls is how often something was written.
func (f *Fake) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// AddLink makes an interface, which is down, and has no addresses.
func (f *Fake) AddLink(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.links = append(f.links, fakeLink{name: name})
	f.Tell(reconcile.Around)
}

// DeleteLink removes an interface, and with it all its routes.
func (f *Fake) DeleteLink(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.links = slices.DeleteFunc(f.links, func(l fakeLink) bool { return l.name == name })
	f.loseLocked(func(r Route) bool { return r.Dev == name })
	f.Tell(reconcile.Around)
}

// SetUp sets an interface up or down. Down, it loses its routes, without a word
// about those of IPv4, and its IPv6 addresses.
func (f *Fake) SetUp(name string, up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.linkLocked(name)
	if l.up = up; !up {
		l.addrs = slices.DeleteFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
		f.loseLocked(func(r Route) bool { return r.Dev == name })
	}
	f.Tell(reconcile.Around)
}

// AddAddr gives an interface an address with the length of its subnet.
func (f *Fake) AddAddr(name string, p netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.linkLocked(name)
	l.addrs = append(l.addrs, p)
	f.Tell(reconcile.Around)
}

// DeleteAddr takes an address away. IPv4 routes that have it as their source
// go, and all those of an interface with its last address. IPv6 routes lose
// their source.
func (f *Fake) DeleteAddr(name string, p netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.linkLocked(name)
	l.addrs = slices.DeleteFunc(l.addrs, func(a netip.Prefix) bool { return a == p })
	is4 := p.Addr().Is4()
	last := is4 && !slices.ContainsFunc(l.addrs, func(a netip.Prefix) bool { return a.Addr().Is4() })
	f.loseLocked(func(r Route) bool { return is4 && r.Src == p.Addr() || last && r.Dev == name && r.Dst.Addr().Is4() })
	for i, r := range f.routes {
		if r.Src == p.Addr() {
			f.routes[i].Src = netip.Addr{}
		}
	}
	f.Tell(reconcile.Around)
}

func (f *Fake) linkLocked(name string) *fakeLink {
	i := slices.IndexFunc(f.links, func(l fakeLink) bool { return l.name == name })
	return &f.links[i]
}

func (f *Fake) loseLocked(lost func(Route) bool) {
	f.routes = slices.DeleteFunc(f.routes, func(r fakeRoute) bool { return lost(r.Route) })
}

// Put adds a route as others do, with our protocol or without.
func (f *Fake) Put(r Route, ours bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.addLocked(fakeRoute{r, !ours}, false); err != nil {
		return err
	}
	f.Tell(news(ours))
	return nil
}

// Delete removes a route as others do.
func (f *Fake) Delete(r Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ours := true
	f.routes = slices.DeleteFunc(f.routes, func(o fakeRoute) bool {
		if o.Route == r {
			ours = !o.foreign
		}
		return o.Route == r
	})
	f.Tell(news(ours))
}

func news(ours bool) reconcile.News {
	if ours {
		return reconcile.Ours
	}
	return reconcile.Foreign
}

// String lists the routes, sorted, one a line; those of others say so.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, r := range f.routes {
		line := r.String()
		if r.foreign {
			line += " (foreign)"
		}
		lines = append(lines, line+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
