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

// claim: an ADD has returned addresses, which nobody else has.
func (s *holders) claim(a *attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, addr := range a.addrs {
		k := held{a.kind.scope(a.h), addr}
		if other := s.of[k]; other != nil && other != a {
			a.h.x.fail(a.h.Name, "ADD %s was given %s, which %s on %s has:\n%s", a, addr, other, other.h.Name,
				a.h.x.of(40, addr.String(), a.box.Name+" ", other.box.Name+" "))
		}
		s.of[k] = a
	}
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
	has := map[held]*attachment{}
	for _, h := range x.hosts {
		for _, a := range h.known() {
			if a.kind.others {
				continue // a bridge plugin that fails leaves its link
			}
			for _, addr := range a.carries() {
				k := held{a.kind.scope(h), addr}
				if other := has[k]; other != nil && other.box != a.box {
					x.fail(h.Name, "links of %s, and of %s on %s, have %s:\n%s", a, other, other.h.Name, addr,
						x.of(40, addr.String(), a.box.Name+" ", other.box.Name+" "))
				}
				has[k] = a
			}
		}
	}
	x.count("looks at links")
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
