package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

const redUUID = "6a4f2f0e-3f0f-4c49-9a3e-1f1d5f6a7b01"

// red is a cluster pool of 14 addresses, and redBlock the four of them that the
// node leases.
func red(t *testing.T) ipam.Pool {
	t.Helper()
	sets := []ipam.RangeSet{{{Subnet: netip.MustParsePrefix("10.9.0.0/28"),
		Interval: ipam.Interval{First: netip.MustParseAddr("10.9.0.1"), Last: netip.MustParseAddr("10.9.0.14")}}}}
	return ipam.Pool{Name: "red", UUID: redUUID, Sets: sets, Routes: []ipam.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}}}
}

var redBlock = netip.MustParsePrefix("10.9.0.4/30")

// opened makes a ledger that leases blocks of red.
func opened(t *testing.T, c *Client, blocks ...netip.Prefix) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), c.o)
	if err != nil {
		t.Fatal(err)
	}
	me, err := l.Node()
	err = errors.Join(err, l.SetPools([]ipam.Pool{red(t)}))
	for _, cidr := range blocks {
		_, lerr := l.Learn(redUUID, lease.Seen{Block: lease.Block{CIDR: cidr, Owner: me}, Rev: 5}, true)
		err = errors.Join(err, lerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ofRed(id string) ipam.AllocateRequest {
	return ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"}, Cluster: "red"}
}

// member is a Cluster that is not asked for addresses.
type member struct{ Cluster }

// TestStatusOfCluster: STATUS fails for what will not mend itself. With an agent
// in a cluster that is less.
func TestStatusOfCluster(t *testing.T) {
	t.Parallel()
	fill := func(n int) func(*testing.T, *ledger.Ledger) {
		return func(t *testing.T, l *ledger.Ledger) {
			for i := range n {
				if _, err := l.Allocate(ofRed(fmt.Sprint(i)), nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	all := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/30"), redBlock, netip.MustParsePrefix("10.9.0.8/30"), netip.MustParsePrefix("10.9.0.12/30")}
	tests := []struct {
		name        string
		blocks      []netip.Prefix
		unconfirmed bool
		make        func(*testing.T, *ledger.Ledger)
		pool        string // default red
		exhausted   bool
		alone, with string // what is wrong outside of a cluster and in one; "" nothing
	}{
		{name: "in order", blocks: []netip.Prefix{redBlock}, make: fill(3), exhausted: true},
		{name: "unknown pool", pool: "blue", alone: `this node knows no pool "blue"`, with: `this node knows no pool "blue"`},
		{name: "unconfirmed", blocks: []netip.Prefix{redBlock}, unconfirmed: true, alone: "start underlayd"},
		{name: "nothing leased", make: fill(0), exhausted: true, alone: "of 14 usable it leases 0"},
		{name: "nothing leased, not asked", make: fill(0)},
		{name: "all used that is leased", blocks: []netip.Prefix{redBlock}, make: fill(4), exhausted: true, alone: "of 14 usable it leases 4: 4 held"},
		{name: "all used that there is", blocks: all, make: fill(14), exhausted: true, alone: "the node has all of the pool", with: "the node has all of the pool"},
		{name: "one cools", blocks: all, exhausted: true, make: func(t *testing.T, l *ledger.Ledger) {
			fill(14)(t, l)
			if _, err := l.Release(ipam.ReleaseRequest{Attachment: ofRed("3").Attachment}); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the last is on its way out", blocks: []netip.Prefix{redBlock}, exhausted: true, alone: "1 on their way to other nodes", make: func(t *testing.T, l *ledger.Ledger) {
			fill(3)(t, l)
			me, err := l.Node()
			if err != nil {
				t.Fatal(err)
			}
			s := lease.Seen{Block: lease.Block{CIDR: redBlock, Owner: me}, Rev: 5}
			if err := l.Intend(redUUID, s, map[netip.Addr]lease.Entry{netip.MustParseAddr("10.9.0.7"): {Node: "other"}}); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c := New(filepath.Join(dir, "data"), filepath.Join(dir, "run"))
			l := opened(t, c, tt.blocks...)
			if !tt.unconfirmed {
				if err := l.Confirm(); err != nil {
					t.Fatal(err)
				}
			}
			if tt.make != nil {
				tt.make(t, l)
			}
			want := wire.Status{Cluster: "red", Exhausted: tt.exhausted}
			if tt.pool != "" {
				want.Cluster = tt.pool
			}
			q := &wire.Request{Op: wire.OpStatus, Status: &want}
			says(t, "in a cluster", Answer(t.Context(), l, member{}, q, always).Failure.Err(), tt.with)
			says(t, "with an agent that has no registry", Answer(t.Context(), l, nil, q, always).Failure.Err(), tt.alone)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			says(t, "alone", c.Status(t.Context(), ipam.Config{Cluster: want.Cluster, StatusOnExhausted: tt.exhausted}), tt.alone)
		})
	}
}

// says: err is one to try again after, and says text; "" stands for none.
func says(t *testing.T, when string, err error, text string) {
	t.Helper()
	if text == "" {
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
		return
	}
	var coded interface{ CNICode() uint }
	if !errors.As(err, &coded) || coded.CNICode() != ipam.CodeTryAgainLater || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error %v, want code %d and %q", when, err, ipam.CodeTryAgainLater, text)
	}
}

// TestReclaimInCluster: an exhausted cluster pool has its own holders looked at,
// and not those of a local pool of its name.
func TestReclaimInCluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := New(filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	l := opened(t, c, redBlock)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	cluster, local := ofRed("cluster"), ofRed("local")
	local.Cluster, local.Pool = "", red(t)
	local.Pool.UUID, local.Pool.Routes = "", nil
	if err := l.Confirm(); err != nil {
		t.Fatal(err)
	}
	for _, req := range []ipam.AllocateRequest{cluster, local} {
		req.Netns = Identify("/proc/self/ns/net")
		if _, err := l.Allocate(req, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, req := range []ipam.AllocateRequest{cluster, local} {
		p, err := poolOf(l, req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := attachments(l, p.ID())
		if err != nil || len(got) != 1 || got[0].Attachment != req.Attachment {
			t.Errorf("holders in the pool of %s: %+v, %v", req.Attachment, got, err)
		}
	}
	if all, err := attachments(l, ""); err != nil || len(all) != 2 {
		t.Errorf("holders: %+v, %v", all, err)
	}
}

// TestResultOfCluster: the result has the routes that go with the pool.
func TestResultOfCluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := New(filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	l := opened(t, c, redBlock)
	err := errors.Join(l.Confirm(), l.Close())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := ipam.Load([]byte(`{"pool":"red"}`), "lan", nil)
	if err != nil {
		t.Fatal(err)
	}
	req := ipam.AllocateRequest{Attachment: ofRed("a").Attachment}
	req.DrawOn(cfg)
	got, err := c.Allocate(t.Context(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	dns, err := DNS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	res := Result(cfg, got, dns)
	for _, ip := range res.IPs {
		said = append(said, ip.Address.String())
	}
	for _, r := range res.Routes {
		said = append(said, r.Dst.String())
	}
	if diff := cmp.Diff([]string{"10.9.0.4/28", "0.0.0.0/0"}, said); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	// A boot later nobody has confirmed that the node still leases it.
	if err := os.Remove(filepath.Join(c.o.RunDir, "confirmed")); err != nil {
		t.Fatal(err)
	}
	req.Attachment.ContainerID = "b"
	_, err = c.Allocate(context.Background(), req, nil)
	says(t, "unconfirmed", err, "start underlayd")
	if !errors.Is(err, ledger.ErrUnconfirmed) {
		t.Errorf("%v is not ErrUnconfirmed", err)
	}
}

// TestResultOfRouted: of a routed pool the result has the address with its block,
// and the gateway there.
func TestResultOfRouted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := New(filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	l := opened(t, c)
	me, err := l.Node()
	pods, block := red(t), netip.MustParsePrefix("10.9.0.8/29")
	pods.Sets = []ipam.RangeSet{pods.Sets[0].Cut(block.Bits())}
	_, lerr := l.Learn(redUUID, lease.Seen{Block: lease.Block{CIDR: block, Owner: me}, Rev: 5}, true)
	if err := errors.Join(err, l.SetPools([]ipam.Pool{pods}), lerr, l.Confirm(), l.Close()); err != nil {
		t.Fatal(err)
	}
	cfg, err := ipam.Load([]byte(`{"pool":"red"}`), "lan", nil)
	if err != nil {
		t.Fatal(err)
	}
	said := func(id string, ask ...netip.Addr) (string, error) {
		req := ipam.AllocateRequest{Attachment: ofRed(id).Attachment}
		req.DrawOn(cfg)
		for _, a := range ask {
			req.Ask(a, "runtimeConfig.ips[0]")
		}
		got, err := c.Allocate(t.Context(), req, nil)
		if err != nil {
			return "", err
		}
		ip := Result(cfg, got, types.DNS{}).IPs[0]
		return fmt.Sprintf("%s via %s", &ip.Address, ip.Gateway), nil
	}
	for i := range 5 {
		if got, err := said(fmt.Sprint(i)); err != nil || got != fmt.Sprintf("10.9.0.%d/29 via 10.9.0.9", 10+i) {
			t.Errorf("result %d: %s, %v", i, got, err)
		}
	}
	_, err = said("one too many")
	says(t, "all given", err, "of 10 usable it leases 5: 5 held")
	_, err = said("gateway", netip.MustParseAddr("10.9.0.9"))
	if fmt.Sprint(err) != "runtimeConfig.ips[0]: 10.9.0.9 is the gateway of block 10.9.0.8/29" {
		t.Errorf("the gateway, asked for: %v", err)
	}
}
