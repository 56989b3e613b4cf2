package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// What the registry is told of containers whose hosts do not share one segment.
const (
	widePool = `{"version": 1, "name": "wide", "kind": "routed", "expectedNodes": 4,
	"ranges": [[{"subnet": "10.6.0.0/16"}], [{"subnet": "fd00:6::/64"}]]}`
	wideNetwork = `{"version": 1, "name": "wide", "pool": "wide", "backend": "vxlan", "vni": 6, "directRouting": true}`
)

// wideConf is the configuration of that network, the same on all hosts.
const wideConf = `{"cniVersion": "1.1.0", "name": "wide", "plugins": [
	{"type": "hostgw", "master": "eth1", "ipam": {"type": "underlay", "pool": "wide"}},
	{"type": "vxlan", "mode": "routed"}]}`

// joinFar adds a host on a second segment, behind a router, and its agent.
func (d *demo) joinFar(ctx context.Context) error {
	d.title("A fourth host, h4, on another segment (198.51.100.0/24) behind a router")
	if err := d.hosts[0].Lab().AddRouter(ctx); err != nil {
		return err
	}
	for _, h := range d.hosts {
		if err := h.Route(ctx, lab.Near); err != nil {
			return err
		}
	}
	h, err := d.hosts[0].Lab().AddHost(ctx, "h4")
	if err != nil {
		return err
	}
	if err := h.Move(ctx, lab.Far, 4); err != nil {
		return err
	}
	d.hosts = append(d.hosts, h)
	return d.startAgents(ctx)
}

// overlayPods makes the network, and a container on each host.
func (d *demo) overlayPods(ctx context.Context) error {
	if err := d.create(ctx, "pool", widePool); err != nil {
		return err
	}
	if err := d.create(ctx, "network", wideNetwork); err != nil {
		return err
	}
	d.title("Routed over both segments (network wide, backend vxlan with directRouting)")
	for i, h := range d.hosts {
		s, err := d.attach(ctx, h, fmt.Sprint("w", i+1), wideConf)
		if err != nil {
			return err
		}
		d.wide = append(d.wide, s)
		fmt.Fprintf(d.out, "  %s on %s has got %s and %s\n", s.name, h.Name, s.addrs[0], s.addrs[1])
	}
	return nil
}

// printWays shows which hosts reach each other directly, and which through VXLAN.
func (d *demo) printWays(ctx context.Context) error {
	ways := map[string]map[string]api.PeerState{}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		settled := true
		for _, h := range d.hosts {
			way, err := wayOf(ctx, h)
			if err != nil {
				return err
			}
			ways[h.Name] = way
			for _, other := range d.hosts {
				want := api.PeerDirect
				if (h == d.hosts[3]) != (other == d.hosts[3]) {
					want = api.PeerVXLAN
				}
				settled = settled && (h == other || way[other.Name] == want)
			}
		}
		if settled {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("hosts reach each other by other ways than they should: %v", ways)
		}
	}
	d.title("Which way (underlayctl peer list --network wide, on each host)")
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "  ")
	for _, h := range d.hosts {
		fmt.Fprint(w, "\t", h.Name)
	}
	fmt.Fprintln(w)
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		fmt.Fprint(w, "  ", name)
		for _, h := range d.hosts {
			way := string(ways[name][h.Name])
			if h.Name == name {
				way = "."
			}
			fmt.Fprint(w, "\t", way)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// wayOf is how a host reaches the others' containers, where it is the same way in
// both families.
func wayOf(ctx context.Context, h *lab.Host) (map[string]api.PeerState, error) {
	c := api.NewClient(h.RunDir)
	defer c.Close()
	peers, err := c.Peers(ctx, "wide")
	ways := map[string][]api.PeerState{}
	for _, p := range peers {
		ways[p.Name] = append(ways[p.Name], p.State)
	}
	out := map[string]api.PeerState{}
	for name, states := range ways {
		out[name] = api.PeerPending
		if len(states) == 2 && states[0] == states[1] {
			out[name] = states[0]
		}
	}
	return out, err
}

// pingWide shows that all of them reach each other.
func (d *demo) pingWide(ctx context.Context) error {
	return d.matrix(ctx, "Who of both segments reaches whom", d.wide, func(station, station) bool { return true })
}
