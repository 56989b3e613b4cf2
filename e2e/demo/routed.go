package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// What the registry is told of containers that are routed: each host leases
// blocks of a pool, and the others route them to it.
const (
	podPool = `{"version": 1, "name": "pods", "kind": "routed", "expectedNodes": 3,
	"ranges": [[{"subnet": "10.5.0.0/16"}], [{"subnet": "fd00:5::/64"}]]}`
	podNetwork = `{"version": 1, "name": "pods", "pool": "pods", "backend": "hostgw"}`
)

// podConf is the configuration of that network, the same on all hosts.
const podConf = `{"cniVersion": "1.1.0", "name": "pods", "type": "hostgw", "master": "eth1", "ipam": {"type": "underlay", "pool": "pods"}}`

// routePods makes the network, and a container on each host.
func (d *demo) routePods(ctx context.Context) error {
	if err := d.create(ctx, "pool", podPool); err != nil {
		return err
	}
	if err := d.create(ctx, "network", podNetwork); err != nil {
		return err
	}
	d.title("Routed from host to host (network pods, backend hostgw)")
	for i, h := range d.hosts {
		s, err := d.attach(ctx, h, fmt.Sprint("p", i+1), podConf)
		if err != nil {
			return err
		}
		d.pods = append(d.pods, s)
		fmt.Fprintf(d.out, "  %s on %s has got %s and %s\n", s.name, h.Name, s.addrs[0], s.addrs[1])
	}
	return nil
}

// printRoutes shows what the agents have made of it.
func (d *demo) printRoutes(ctx context.Context) error {
	// A host hears of the last one's blocks a moment after the ADD there.
	for _, h := range d.hosts {
		for range 100 {
			const families = 2
			if out, err := h.Exec(ctx, d.underlayctl(h, "peer", "list")...); err != nil || strings.Count(out, "direct") >= families*(len(d.hosts)-1) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	h := d.hosts[0]
	peers := d.underlayctl(h, "peer", "list")
	for _, argv := range [][]string{
		peers,
		{"ip", "route", "show", "proto", "141"},
		{"ip", "-6", "route", "show", "proto", "141"},
	} {
		out, err := h.Exec(ctx, argv...)
		if err != nil {
			return err
		}
		what, said := "Routes", strings.Join(argv, " ")
		if argv[0] != "ip" {
			what, said = "Peers", "underlayctl peer list"
		}
		d.title("%s of %s (%s)", what, h.Name, said)
		for line := range strings.Lines(out) {
			fmt.Fprint(d.out, "  ", line)
		}
	}
	return nil
}

// pingPods shows that all routed containers and all hosts reach each other.
func (d *demo) pingPods(ctx context.Context) error {
	return d.matrix(ctx, "Who of the routed reaches whom", append(d.hostStations(), d.pods...), func(station, station) bool { return true })
}

func (d *demo) hostStations() (hosts []station) {
	for _, s := range d.stations {
		if s.container == nil {
			hosts = append(hosts, s)
		}
	}
	return hosts
}
