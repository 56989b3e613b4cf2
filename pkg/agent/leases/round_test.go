package leases

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
)

// round has every node do a round, and the clock go on.
func (c *cluster) round() {
	c.t.Helper()
	for _, n := range c.nodes {
		v, err := n.Registry.View(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		if _, err := n.Round(c.t.Context(), v); err != nil {
			c.t.Fatalf("%s: %v", n.name, err)
		}
	}
	c.now = c.now.Add(50 * time.Millisecond)
}

func request(id, owner string) ipam.AllocateRequest {
	return ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "a", ContainerID: id, IfName: "eth0"}, Cluster: "a", Owner: owner}
}

// get is an ADD that waits for up to two seconds, while the others do their
// rounds.
func (n *node) get(id, owner string) (netip.Addr, error) {
	n.c.t.Helper()
	var last error
	if owner != "" {
		v, err := n.Registry.View(n.c.t.Context())
		if err != nil {
			n.c.t.Fatal(err)
		}
		if _, err := n.Need(n.c.t.Context(), v, n.c.pool, 0, owner); err != nil {
			return netip.Addr{}, err
		}
	}
	for range 40 {
		a, err := n.Ledger.Allocate(request(id, owner), nil)
		if err == nil {
			return a.Addresses[0].Prefix.Addr(), n.letGo()
		}
		if !errors.As(err, new(*ipam.ExhaustedError)) && !errors.Is(err, ledger.ErrUnconfirmed) {
			n.c.t.Fatal(err)
		}
		v, verr := n.Registry.View(n.c.t.Context())
		if verr != nil {
			n.c.t.Fatal(verr)
		}
		if _, err := n.Need(n.c.t.Context(), v, n.c.pool, 0, owner); err != nil {
			return netip.Addr{}, err
		}
		last = err
		n.c.round()
	}
	return netip.Addr{}, errors.Join(last, n.letGo())
}

func (n *node) letGo() error {
	v, err := n.Registry.View(n.c.t.Context())
	if err != nil {
		return err
	}
	return n.LetGo(n.c.t.Context(), v, n.c.pool.UUID)
}

func (n *node) release(id string) {
	n.c.t.Helper()
	if _, err := n.Ledger.Release(ipam.ReleaseRequest{Attachment: request(id, "").Attachment}); err != nil {
		n.c.t.Fatal(err)
	}
}

// leased counts the addresses of each node.
func (c *cluster) leased() (counts []int) {
	v, err := registry.Registry{Store: c.store}.View(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes {
		count := 0
		for _, s := range v.Seen(c.pool.UUID) {
			count += s.Block.Nodes()[n.id]
		}
		counts = append(counts, count)
	}
	return counts
}

func TestWholePool(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/26"}]],"blockPrefix":{"ipv4":30}}`, 5)
	defer c.check()
	c.round()
	seen := map[netip.Addr]bool{}
	for i := range int(c.pool.Sets[0].Size()) {
		n := c.nodes[c.rng.IntN(5)]
		a, err := n.get(fmt.Sprint("c", i), "")
		if err != nil || seen[a] {
			t.Fatalf("the %dth address is %s, known %v: %v; leased %v", i+1, a, seen[a], err, c.leased())
		}
		seen[a] = true
	}
	_, err := c.nodes[0].get("one too many", "")
	if full := (*ipam.ExhaustedError)(nil); !errors.As(err, &full) {
		t.Errorf("beyond the last: %v", err)
	}
}

func TestSticky(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/27"}]],"blockPrefix":{"ipv4":30},"sticky":true,"stickyFor":"1h"}`, 3)
	defer c.check()
	c.round()
	want, err := c.nodes[0].get("w", "ns/web-0")
	if err != nil {
		t.Fatal(err)
	}
	c.round()
	for move := range 30 {
		from, to := c.nodes[move%3], c.nodes[(move+1)%3]
		var held *HolderError
		if _, err := to.get("w", "ns/web-0"); !errors.As(err, &held) || held.Addr != want || held.Holder != from.id {
			t.Fatalf("move %d, while it is held: %v", move, err)
		}
		from.release("w")
		c.now = c.now.Add(time.Minute)
		c.round()
		if got, err := to.get("w", "ns/web-0"); err != nil || got != want {
			t.Fatalf("move %d: %s, %v; want %s", move, got, err, want)
		}
		c.round()
	}
}

func TestAheadAndBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}]],"blockPrefix":{"ipv4":29}}`, 1)
	defer c.check()
	n := c.nodes[0]
	c.round()
	if got := c.leased(); !slices.Equal(got, []int{0}) {
		t.Errorf("before anybody asks: %v", got)
	}
	for i := range 20 {
		if _, err := n.get(fmt.Sprint("c", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		c.round()
	}
	if got := c.leased()[0]; got < 40 {
		t.Errorf("%d leased after 20 in a second: none ahead", got)
	}
	for i := range 20 {
		n.release(fmt.Sprint("c", i))
	}
	c.now = c.now.Add(5 * time.Minute)
	c.round()
	before := c.leased()[0]
	c.now = c.now.Add(11 * time.Minute)
	for range 3 {
		c.round()
	}
	if got := c.leased()[0]; before < 40 || got != 8 {
		t.Errorf("%d leased after 5 idle minutes, %d after 16, want one block", before, got)
	}
}

// TestAheadOfEach: of two range sets each has its own need.
func TestAheadOfEach(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"2001:db8::/64"}]],"blockPrefix":{"ipv4":30,"ipv6":120}}`, 1)
	defer c.check()
	n := c.nodes[0]
	v, err := n.Registry.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for set := range 2 {
		if got, err := n.Need(t.Context(), v, c.pool, set, ""); err != nil || !got {
			t.Fatal(got, err)
		}
	}
	c.round() // confirms
	for i := range 3 {
		if _, err := n.Ledger.Allocate(request(fmt.Sprint("c", i), ""), nil); err != nil {
			t.Fatal(err)
		}
	}
	c.round()
	spares, err := n.Ledger.Spares(c.pool.UUID, 1000)
	if err != nil {
		t.Fatal(err)
	}
	four := 0
	for _, s := range spares {
		if s.Address.Is4() {
			four++
		}
	}
	if four < 4 || len(spares)-four < 128 {
		t.Errorf("%d IPv4 and %d IPv6 addresses to spare", four, len(spares)-four)
	}
}

func TestRemoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/28"}]]}`, 2)
	defer c.check()
	c.round()
	n := c.nodes[0]
	if _, err := n.get("c", ""); err != nil {
		t.Fatal(err)
	}
	if err := n.session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := registry.Registry{Store: c.store}
	if err := r.Remove(t.Context(), n.id, 0); err != nil {
		t.Fatal(err)
	}
	v, err := r.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bad *StandingError
	if _, err := n.Round(t.Context(), v); !errors.As(err, &bad) {
		t.Errorf("a removed node: %v", err)
	}
	if _, err := n.Ledger.Renew(); err != nil {
		t.Fatal(err)
	}
	n.release("c")
	n.start()
	if _, err := n.get("again", ""); err != nil {
		t.Errorf("as another node: %v", err)
	}
}
