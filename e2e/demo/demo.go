package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/underlay-cni/underlay/e2e/lab"
)

const intro = `Three hosts on a switch, all in 192.0.2.0/24 and 2001:db8::/64, with an agent each; that of h1 runs the
registry (etcd). Containers on macvlan get their addresses from one pool, "lan"; others are routed from host
to host, in blocks of the pool "pods"; and of the pool "wide", through VXLAN where hosts share no segment.
`

// conf is the network's configuration, the same on all hosts.
const conf = `{
	"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "master": "eth1", "mode": "bridge",
	"ipam": {"type": "underlay", "pool": "lan"}
}`

// demo is one run.
type demo struct {
	lab  string // its name
	bin  string // folder of the programs
	keep bool   // leave it up
	out  io.Writer

	hosts    []*lab.Host
	agents   map[*lab.Host]*exec.Cmd // that run
	stations []station
	pods     []station // containers that are routed
	wide     []station // containers of the network over both segments
}

// station is a host, or a container attached to the network.
type station struct {
	*lab.Namespace
	name  string
	host  *lab.Host
	addrs []netip.Addr // IPv4, IPv6
	mac   string

	container *lab.Container // nil for a host
	conf      string         // of its network
}

func (d *demo) run(ctx context.Context) (err error) {
	l, err := lab.New(ctx, d.lab)
	if err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, d.killAgents(), l.Close())
		}
	}()
	fmt.Fprint(d.out, intro)
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { return d.addHosts(ctx, l) },
		d.startAgents, d.createPool, d.attachAll, d.startAgents,
		d.printStations, d.pingAll, d.printLeases, d.printLedgers,
		d.routePods, d.printRoutes, d.pingPods,
		d.joinFar, d.overlayPods, d.printWays, d.pingWide,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if d.keep {
		kept = true
		d.printHints()
		return nil
	}
	return d.tearDown(ctx)
}

// addHosts makes the hosts.
func (d *demo) addHosts(ctx context.Context, l *lab.Lab) error {
	d.agents = map[*lab.Host]*exec.Cmd{}
	for n := range 3 {
		name := fmt.Sprintf("h%d", n+1)
		addrs := []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n+1)),
			netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n+1)),
		}
		h, err := l.AddHost(ctx, name, netip.PrefixFrom(addrs[0], 24), netip.PrefixFrom(addrs[1], 64))
		if err != nil {
			return err
		}
		link, _, err := h.Link(ctx, lab.Parent)
		if err != nil {
			return err
		}
		d.hosts = append(d.hosts, h)
		d.stations = append(d.stations, station{Namespace: h.Namespace, name: name, host: h, addrs: addrs, mac: link.MAC})
	}
	return nil
}

// attachAll attaches containers, while agents die.
func (d *demo) attachAll(ctx context.Context) error {
	h1, h2, h3 := d.hosts[0], d.hosts[1], d.hosts[2]
	d.title("What happens")
	for _, step := range []struct {
		die  *lab.Host // the host whose agent dies before
		name string
		on   *lab.Host
		what string
	}{
		{nil, "c1", h1, "with an agent on every host"},
		{nil, "c2", h2, ""},
		{nil, "c3", h3, ""},
		{h2, "c4", h2, "without the agent of h2, which was killed: from what the host leases"},
		{h1, "c5", h3, "without the registry, whose agent on h1 was killed as well: likewise"},
		{nil, "c6", h1, "without an agent and without the registry: likewise"},
	} {
		if step.die != nil {
			if err := d.killAgent(step.die); err != nil {
				return err
			}
		}
		s, err := d.attach(ctx, step.on, step.name, conf)
		if err != nil {
			return err
		}
		d.stations = append(d.stations, s)
		fmt.Fprintln(d.out, strings.TrimRight(fmt.Sprintf("  %s on %s has got %s %s", s.name, s.host.Name, s.addrs[0], step.what), " "))
	}
	fmt.Fprintln(d.out, "  the agents are started again")
	return nil
}

// attach makes a container and ADDs it to the network that conf configures.
func (d *demo) attach(ctx context.Context, h *lab.Host, name, conf string) (station, error) {
	c, err := h.AddContainer(ctx, name)
	if err != nil {
		return station{}, err
	}
	result, err := h.CNI(d.bin).Add(ctx, conf, c.Runtime())
	if err != nil {
		return station{}, fmt.Errorf("attach %s on %s: %w", name, h.Name, err)
	}
	link, ok, err := c.Link(ctx, "eth0")
	if err != nil {
		return station{}, err
	}
	if !ok || len(result.IPs) != 2 {
		return station{}, fmt.Errorf("attach %s on %s: got interface eth0: %v, %d addresses", name, h.Name, ok, len(result.IPs))
	}
	s := station{Namespace: c.Namespace, name: name, host: h, mac: link.MAC, container: c, conf: conf}
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		s.addrs = append(s.addrs, addr.Unmap())
	}
	return s, nil
}

// title prints what follows.
func (d *demo) title(format string, args ...any) {
	fmt.Fprintf(d.out, "\n"+format+"\n", args...)
}

func (d *demo) printStations(context.Context) error {
	d.title("Addresses")
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "  HOST\tCONTAINER\tIPV4\tIPV6\tMAC")
	for _, s := range d.stations {
		container := "-"
		if s.container != nil {
			container = s.name
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", s.host.Name, container, s.addrs[0], s.addrs[1], s.mac)
	}
	return w.Flush()
}
