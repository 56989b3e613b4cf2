package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"

	"github.com/underlay-cni/underlay/e2e/lab"
)

const intro = `Two hosts on a switch, each with two containers on macvlan, all in 192.0.2.0/24 and 2001:db8::/64.
A host's ledger knows only its own addresses, so each host has ranges of its own.
`

// containers are the names of each host's.
var containers = [][]string{{"c1", "c2"}, {"c3", "c4"}}

// conf is the network's configuration on host n: its ranges end in n0 to n9.
func conf(n int) string {
	return fmt.Sprintf(`{
		"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "master": "eth1", "mode": "bridge",
		"ipam": {"type": "underlay", "ranges": [
			[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.%[1]d0", "rangeEnd": "192.0.2.%[1]d9"}],
			[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::%[1]d0", "rangeEnd": "2001:db8::%[1]d9"}]]}
	}`, n)
}

// demo is one run.
type demo struct {
	lab  string // its name
	bin  string // folder of the programs
	keep bool   // leave it up
	out  io.Writer

	hosts    []*lab.Host
	stations []station
}

// station is a host, or a container attached to the network.
type station struct {
	*lab.Namespace
	name  string
	host  *lab.Host
	addrs []netip.Addr // IPv4, IPv6
	mac   string

	container *lab.Container // nil for a host
	conf      string         // that the container was attached by
}

func (d *demo) run(ctx context.Context) (err error) {
	l, err := lab.New(ctx, d.lab)
	if err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, l.Close())
		}
	}()
	fmt.Fprint(d.out, intro)
	if err := d.setUp(ctx, l); err != nil {
		return err
	}
	d.printStations()
	if err := d.pingAll(ctx); err != nil {
		return err
	}
	if err := d.printLedgers(ctx); err != nil {
		return err
	}
	if d.keep {
		kept = true
		d.printHints()
		return nil
	}
	return d.tearDown(ctx)
}

// setUp makes the hosts and attaches their containers.
func (d *demo) setUp(ctx context.Context, l *lab.Lab) error {
	for i, names := range containers {
		n := i + 1
		name := fmt.Sprintf("h%d", n)
		addrs := []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n)),
			netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n)),
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
		for _, name := range names {
			s, err := d.attach(ctx, h, name, conf(n))
			if err != nil {
				return err
			}
			d.stations = append(d.stations, s)
		}
	}
	return nil
}

// attach makes a container and ADDs it to the network.
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

func (d *demo) printStations() {
	d.title("Addresses")
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "  HOST\tCONTAINER\tIPV4\tIPV6\tMAC")
	for _, s := range d.stations {
		container := "-"
		if s.container != nil {
			container = s.name
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", s.host.Name, container, s.addrs[0], s.addrs[1], s.mac)
	}
}
