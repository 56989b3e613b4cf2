// Package path measures what it costs a packet to go from a container on one
// host to a container on another: by hostgw, by a veth pair and routes that were
// set up by hand, and by the reference plugin bridge with static routes; and
// through VXLAN, ours and one that was set up by hand. It runs all of them in turn, round by round, so that what disturbs the machine disturbs
// all alike: a round's ratios mean something, its gigabits little.
//
// Each variant has a switch and two hosts of its own (package e2e/lab), since
// what one adds to a host's namespace, such as connection tracking, costs all
// traffic there. Throughput is iperf3's, one TCP stream, and latency the median
// of round trips of 64 octets on one TCP connection, both from end to end on
// processors of their own where there are two. In each round a variant has several
// turns, and the best counts: what others do to a machine can only slow it down.
package path

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// Section is the name that the report has.
const Section = "pod to pod on two hosts, one TCP connection"

// Variants.
const (
	ByHand     = "a routed veth pair, by hand"
	Reference  = "reference bridge, static routes"
	Ours       = "ours"
	OursBridge = "ours, on a node bridge"
	OursAlone  = "ours, without an agent"
	// These two are through VXLAN, with the MTU that it leaves.
	OverlayByHand = "VXLAN, by hand"
	OursOverlay   = "ours, through VXLAN"
)

// Variants are all of them, that which the others are compared with first.
func Variants() []string {
	return []string{ByHand, Reference, Ours, OursBridge, OursAlone, OverlayByHand, OursOverlay}
}

// Sample is what was found of a variant.
type Sample struct {
	Gigabits  float64 // a second
	RoundTrip time.Duration
}

// Config says how much is measured. All fields are required.
type Config struct {
	// Bin and Reference are the folders of our plugins and of the reference's.
	Bin, Reference string
	// Rounds, in each of which every variant is measured once.
	Rounds int
	// Record is told each sample, round by round.
	Record func(variant string, s Sample)
}

// bed is a variant's switch with two hosts, and a pod on each.
type bed struct {
	variant string
	lab     *lab.Lab
	pods    [2]pod
	stop    func() error // of the echo
	dels    []func(context.Context) error
}

type pod struct {
	*lab.Container
	addr netip.Addr
}

// Measure measures all variants.
func Measure(ctx context.Context, cfg Config) (err error) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return fmt.Errorf("%w; it is in the package iperf3, which make bench installs", err)
	}
	var beds []*bed
	defer func() {
		for _, b := range beds {
			err = errors.Join(err, b.Close())
		}
	}()
	for i, variant := range Variants() {
		b, err := newBed(ctx, cfg, variant, fmt.Sprintf("benchpath%d", i))
		if b != nil {
			beds = append(beds, b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", variant, err)
		}
	}
	for round := -1; round < cfg.Rounds; round++ { // the first warms up
		best := make([]Sample, len(beds))
		for range turns {
			for _, i := range rand.Perm(len(beds)) {
				s, err := beds[i].sample(ctx)
				if err != nil {
					return fmt.Errorf("%s: %w", beds[i].variant, err)
				}
				best[i] = best[i].orBetter(s)
			}
		}
		for i, b := range beds {
			if round >= 0 {
				cfg.Record(b.variant, best[i])
			}
		}
	}
	return nil
}

// turns of each variant in a round.
const turns = 3

// orBetter has the better figures of two samples; the zero value is none.
func (s Sample) orBetter(o Sample) Sample {
	if s.RoundTrip == 0 {
		return o
	}
	return Sample{max(s.Gigabits, o.Gigabits), min(s.RoundTrip, o.RoundTrip)}
}

// newBed makes the hosts and connects a pod on each. What it returns has to be
// closed, beside an error too.
func newBed(ctx context.Context, cfg Config, variant, name string) (*bed, error) {
	// A run that was killed may have left a folder.
	if err := lab.Remove(name); err != nil {
		return nil, err
	}
	l, err := lab.New(ctx, name)
	if err != nil {
		return nil, err
	}
	b := &bed{variant: variant, lab: l, stop: func() error { return nil }}
	for i := range b.pods {
		h, err := l.AddHost(ctx, fmt.Sprintf("n%d", i+1), netip.PrefixFrom(address(i), 24))
		if err != nil {
			return b, err
		}
		c, err := h.AddContainer(ctx, "pod")
		if err != nil {
			return b, err
		}
		b.pods[i].Container = c
		connect := map[string]func(context.Context, Config, *lab.Host, int) error{
			ByHand: b.byHand, Reference: b.reference, Ours: b.ours, OursBridge: b.ours, OursAlone: b.static, OverlayByHand: b.overlayByHand, OursOverlay: b.ours,
		}[variant]
		if err := connect(ctx, cfg, h, i); err != nil {
			return b, err
		}
	}
	b.stop, err = echo(b.pods[1])
	return b, err
}

// Close detaches the pods, and removes the hosts.
func (b *bed) Close() error {
	err := b.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, del := range slices.Backward(b.dels) {
		err = errors.Join(err, del(ctx))
	}
	return errors.Join(err, b.lab.Close())
}

// address of a host.
func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) }

// block of a host, and an address in it.
func block(i int) netip.Prefix { return netip.PrefixFrom(in(i, 0), 24) }

func in(i, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i + 1), byte(host)}) }

// ip runs lines of iproute2 in a namespace.
func ip(ctx context.Context, n *lab.Namespace, lines ...string) error {
	for _, line := range lines {
		if _, err := n.Exec(ctx, append([]string{"ip"}, strings.Fields(line)...)...); err != nil {
			return err
		}
	}
	return nil
}

// forward has a host pass packets on.
func forward(h *lab.Host) error {
	return h.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
}

// byHand is the least that connects a pod by routes.
func (b *bed) byHand(ctx context.Context, _ Config, h *lab.Host, i int) error {
	p, other, gateway := &b.pods[i], 1-i, in(i, 1)
	p.addr = in(i, 2)
	return errors.Join(
		forward(h),
		ip(ctx, h.Namespace,
			"link add pod type veth peer name eth0 netns "+p.ID,
			fmt.Sprintf("addr add %s/32 dev pod", gateway),
			"link set pod up",
			fmt.Sprintf("route add %s/32 dev pod", p.addr),
			fmt.Sprintf("route add %s via %s", block(other), address(other))),
		ip(ctx, p.Namespace,
			fmt.Sprintf("addr add %s/32 dev eth0", p.addr),
			"link set eth0 up",
			fmt.Sprintf("route add default via %s dev eth0 onlink", gateway)))
}

// object is a JSON object.
type object = map[string]any

// reference has its bridge plugin connect a pod; routes to the other host are
// nobody's business there.
func (b *bed) reference(ctx context.Context, cfg Config, h *lab.Host, i int) error {
	err := errors.Join(
		forward(h),
		ip(ctx, h.Namespace, fmt.Sprintf("route add %s via %s", block(1-i), address(1-i))))
	if err != nil {
		return err
	}
	return b.attach(ctx, cfg.Reference, h, i, object{
		"type": "bridge", "bridge": "cni0", "isGateway": true,
		"ipam": object{"type": "host-local", "ranges": ranges(i), "routes": everywhere},
	})
}

// static has hostgw connect a pod and make the route to the other host itself.
func (b *bed) static(ctx context.Context, cfg Config, h *lab.Host, i int) error {
	conf := object{
		"type": "hostgw", "master": lab.Parent,
		"ipam":  object{"type": "underlay", "ranges": ranges(i), "routes": everywhere},
		"peers": []object{{"prefix": block(1 - i), "via": address(1 - i)}},
	}
	return b.attach(ctx, cfg.Bin, h, i, conf)
}

// everywhere is where pods reach by their gateway.
var everywhere = []object{{"dst": "0.0.0.0/0"}}

func ranges(i int) [][]object {
	return [][]object{{{"subnet": block(i), "gateway": in(i, 1)}}}
}

// attach runs a chain of plugins for a pod.
func (b *bed) attach(ctx context.Context, bin string, h *lab.Host, i int, chain ...object) error {
	text, err := json.Marshal(object{"cniVersion": "1.1.0", "name": "pods", "plugins": chain})
	if err != nil {
		return err
	}
	for _, plugin := range chain {
		if _, err := os.Stat(filepath.Join(bin, plugin["type"].(string))); err != nil {
			return err
		}
	}
	cni, rt := h.CNI(bin), b.pods[i].Runtime()
	// After an ADD that failed too, as a runtime does.
	b.dels = append(b.dels, func(ctx context.Context) error { return cni.Del(ctx, string(text), rt) })
	result, err := cni.Add(ctx, string(text), rt)
	if err != nil {
		return err
	}
	if len(result.IPs) != 1 {
		return fmt.Errorf("%d addresses", len(result.IPs))
	}
	addr, _ := netip.AddrFromSlice(result.IPs[0].Address.IP)
	b.pods[i].addr = addr.Unmap()
	return nil
}
