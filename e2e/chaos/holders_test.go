package chaos_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// holders are who has which address, by what runtimes were told.
type holders struct {
	mu sync.Mutex
	of map[held]*attachment
}

type held struct {
	scope string
	addr  netip.Addr
}

func newHolders() *holders { return &holders{of: map[held]*attachment{}} }

// claim: an ADD has returned addresses, which nobody else has. It returns the one
// who has.
func (s *holders) claim(a *attachment) (other *attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, addr := range a.addrs {
		k := held{a.kind.scope(a.h), addr}
		if has := s.of[k]; has != nil && has != a {
			other = has
		}
		s.of[k] = a
	}
	return other
}

// leave: from now on others may have the addresses.
func (s *holders) leave(a *attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, holder := range s.of {
		if holder == a {
			delete(s.of, k)
		}
	}
}

// watch looks again and again at what the links in containers carry, and at what
// others have on hosts, until it is told to stop.
func (x *campaign) watch() (stop func()) {
	done := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Second):
			}
			x.carriers()
			for _, h := range x.hosts {
				h.others.look(h)
			}
		}
	})
	return func() { close(done); all.Wait() }
}

// carriers: no two containers have a link with the same address. Whether a
// namespace is there any more is not asked: it may go at any time.
func (x *campaign) carriers() {
	seen := newHolders()
	for _, h := range x.hosts {
		for _, a := range h.known() {
			if a.kind.others {
				continue // a bridge plugin that fails leaves its link
			}
			carried := &attachment{h: h, kind: a.kind, box: a.box, addrs: a.carries()}
			if other := seen.claim(carried); other != nil {
				x.both("links carry the same", carried, other)
			}
		}
	}
	x.count("looks at links")
}

// both fails: two attachments have an address.
func (x *campaign) both(what string, a, b *attachment) {
	x.fail(a.h.Name, "%s address: %s, and %s on %s:\n%s", what, a, b, b.h.Name, x.of(40, "/"+a.box.Name+" ", "/"+b.box.Name+" "))
}

// carries are the addresses in the container that others can reach.
func (a *attachment) carries() (addrs []netip.Addr) {
	_ = a.box.Do(func() error {
		prefixes, err := net.InterfaceAddrs()
		for _, p := range prefixes {
			addr, _ := netip.AddrFromSlice(p.(*net.IPNet).IP)
			if addr = addr.Unmap(); addr.IsGlobalUnicast() {
				addrs = append(addrs, addr)
			}
		}
		return err
	})
	return addrs
}

// after is a context for what has to be over in some time.
func after(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
