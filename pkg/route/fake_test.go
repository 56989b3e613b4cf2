package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// machine is the kernel and the Fake, which the same is done to.
type machine struct {
	t           *testing.T
	host        host
	fake        *Fake
	real        *Reconciler
	copy        *Reconciler
	ours, other Kernel // read the routes of ours and of others
	addrs       map[string][]netip.Prefix
	want        []Want
}

const foreignProtocol = 99

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, host: newHost(t)}
	m.real = m.host.reconciler(t, Config{MaxRetry: 1}) // at once
	open := func(protocol uint8) Kernel {
		k, err := openTable(Config{Netns: m.host.ns, Protocol: protocol})
		must(t, err)
		t.Cleanup(func() { must(t, k.Close()) })
		return k
	}
	m.ours, m.other = open(Protocol), open(foreignProtocol)
	return m
}

// reset takes away what the last run left.
func (m *machine) reset() {
	must(m.t, m.real.Apply(context.Background(), nil))
	others, err := m.other.List(context.Background())
	must(m.t, err)
	var changes []reconcile.Change[Route]
	for _, r := range others {
		changes = append(changes, reconcile.Change[Route]{Verb: reconcile.Delete, Old: r})
	}
	verdicts, err := m.other.Change(context.Background(), changes)
	must(m.t, errors.Join(append(verdicts, err)...))
	commands := "link set eth1 up\nlink set eth2 up"
	for dev, addrs := range m.addrs {
		for _, p := range addrs {
			commands += fmt.Sprintf("\naddr del %s dev %s", p, dev)
		}
	}
	m.host.ip(m.t, commands)
	m.fake, m.addrs, m.want = new(Fake), make(map[string][]netip.Prefix), nil
	for _, dev := range []string{"eth1", "eth2"} {
		m.fake.AddLink(dev)
		m.fake.SetUp(dev, true)
	}
	m.copy, err = New(Config{Kernel: m.fake, MaxRetry: 1})
	must(m.t, err)
}

// text is all there is, as Fake.String has it.
func (m *machine) text() string {
	ours, err := m.ours.List(context.Background())
	must(m.t, err)
	others, err := m.other.List(context.Background())
	must(m.t, err)
	var lines []string
	for _, r := range ours {
		lines = append(lines, r.String()+"\n")
	}
	for _, r := range others {
		lines = append(lines, r.String()+" (foreign)\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// steps are what happens to a host: by its administrator, by others, by us.
func (m *machine) steps() map[string]func(*rapid.T) {
	devs := rapid.SampledFrom([]string{"eth1", "eth2"})
	subnets := rapid.SampledFrom([]netip.Prefix{
		prefix("192.0.2.1/24"), prefix("198.51.100.1/24"), prefix("2001:db8:a::1/64"), prefix("2001:db8:b::1/64"),
	})
	route := rapid.Custom(func(t *rapid.T) Route {
		is4 := rapid.Bool().Draw(t, "IPv4")
		pick := func(name string, v4, v6 []string) string {
			if is4 {
				return rapid.SampledFrom(v4).Draw(t, name)
			}
			return rapid.SampledFrom(v6).Draw(t, name)
		}
		r := Route{Dst: prefix(pick("dst", []string{"10.1.0.0/24", "10.2.0.0/24"}, []string{"2001:db8:1::/64", "2001:db8:2::/64"}))}
		if rapid.IntRange(0, 5).Draw(t, "to nowhere") == 0 {
			r.Unreachable = true
			return r
		}
		r.Dev = rapid.SampledFrom([]string{"eth1", "eth1", "eth2", "eth9"}).Draw(t, "dev")
		if rapid.IntRange(0, 5).Draw(t, "via") > 0 {
			r.Via = addr(pick("gateway", []string{"192.0.2.7", "192.0.2.8", "198.51.100.7"}, []string{"2001:db8:a::7", "2001:db8:b::7", "2001:db8:b::8"}))
			r.Onlink = rapid.IntRange(0, 3).Draw(t, "onlink") == 0
		}
		if rapid.IntRange(0, 4).Draw(t, "has source") == 0 {
			r.Src = addr(pick("src", []string{"192.0.2.1", "198.51.100.1"}, []string{"2001:db8:a::1", "2001:db8:b::1"}))
		}
		r.MTU = rapid.SampledFrom([]int{0, 0, 1400}).Draw(t, "mtu")
		return r
	})
	apply := func(t *rapid.T) {
		said := func(r *Reconciler) string {
			_ = r.Apply(context.Background(), m.want)
			var failed []string
			for _, s := range r.Status() {
				if s.Err != nil {
					failed = append(failed, s.Object.String())
				}
			}
			return strings.Join(failed, "\n")
		}
		if real, copy := said(m.real), said(m.copy); real != copy {
			t.Fatalf("refused by the kernel:\n%s\nby the fake:\n%s", real, copy)
		}
	}
	return map[string]func(*rapid.T){
		"apply": func(t *rapid.T) {
			m.want = nil
			for i, r := range rapid.SliceOfNDistinct(route, 0, 4, Route.Key).Draw(t, "want") {
				m.want = append(m.want, Want{Peer: fmt.Sprint(i), Object: r})
			}
			apply(t)
		},
		"apply again": apply,
		"address": func(t *rapid.T) {
			dev, p := devs.Draw(t, "dev"), subnets.Draw(t, "address")
			if slices.Contains(m.addrs["eth1"], p) || slices.Contains(m.addrs["eth2"], p) {
				return
			}
			m.host.ip(m.t, fmt.Sprintf("link set %s up\naddr add %s dev %s nodad", dev, p, dev))
			m.fake.SetUp(dev, true)
			m.fake.AddAddr(dev, p)
			m.addrs[dev] = append(m.addrs[dev], p)
		},
		"address goes": func(t *rapid.T) {
			dev := devs.Draw(t, "dev")
			if len(m.addrs[dev]) == 0 {
				return
			}
			p := rapid.SampledFrom(m.addrs[dev]).Draw(t, "address")
			m.host.ip(m.t, fmt.Sprintf("addr del %s dev %s", p, dev))
			m.fake.DeleteAddr(dev, p)
			m.addrs[dev] = slices.DeleteFunc(m.addrs[dev], func(a netip.Prefix) bool { return a == p })
		},
		"link flaps": func(t *rapid.T) {
			dev := devs.Draw(t, "dev")
			up := rapid.Bool().Draw(t, "up")
			m.host.ip(m.t, "link set "+dev+" down")
			m.fake.SetUp(dev, false)
			m.addrs[dev] = slices.DeleteFunc(m.addrs[dev], func(a netip.Prefix) bool { return a.Addr().Is6() })
			if up {
				m.host.ip(m.t, "link set "+dev+" up")
				m.fake.SetUp(dev, true)
			}
		},
		"a route of others": func(t *rapid.T) {
			r := route.Draw(t, "route")
			ours := rapid.Bool().Draw(t, "with our protocol")
			protocol := foreignProtocol
			if ours {
				protocol = Protocol
			}
			err := m.host.try(fmt.Sprintf("route add %s proto %d", r, protocol))
			if ferr := m.fake.Put(r, ours); (err == nil) != (ferr == nil) {
				t.Fatalf("route add %s: the kernel says %v, the fake %v", r, err, ferr)
			}
		},
		"a route goes": func(t *rapid.T) {
			r := route.Draw(t, "route")
			err := m.host.try(fmt.Sprintf("route del %s proto %d", r, foreignProtocol))
			if err == nil {
				// The kernel takes what fits; the fake needs it exactly.
				r = m.gone(t, r)
				m.fake.Delete(r)
			}
		},
		"": func(t *rapid.T) {
			if real, copy := m.text(), m.fake.String(); real != copy {
				t.Fatalf("the kernel has\n%s\nthe fake has\n%s", real, copy)
			}
		},
	}
}

// gone is the route of others that the fake still has and the kernel does not.
func (m *machine) gone(t *rapid.T, like Route) Route {
	real := m.text()
	m.fake.mu.Lock()
	defer m.fake.mu.Unlock()
	for _, r := range m.fake.routes {
		if r.foreign && r.Key() == like.Key() && !strings.Contains(real, r.String()+" (foreign)\n") {
			return r.Route
		}
	}
	t.Fatalf("the kernel has deleted something like %s, and the fake has no such route", like)
	return Route{}
}

// The Fake is worth what it has in common with the kernel: the same things
// happen to both, in random order, and both refuse, lose and keep the same.
// Routes of others stay as they are, whatever is wanted.
func TestFakeIsLikeTheKernel(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	rapid.Check(t, func(rt *rapid.T) {
		m.reset()
		rt.Repeat(m.steps())
	})
}
