package documents

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// bed is two machines on one switch. Commands of documents run on the first.
type bed struct {
	t      *testing.T
	h1, h2 *machine
}

func newBed(t *testing.T) *bed { return bedOf(t, true) }

// bedOf makes a bed; without programs nothing is installed on the first machine.
func bedOf(t *testing.T, programs bool) *bed {
	t.Helper()
	l := lab.Test(t)
	b := &bed{t: t}
	for i, m := range []**machine{&b.h1, &b.h2} {
		n := i + 1
		h, err := l.AddHost(t.Context(), fmt.Sprint("h", n),
			netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 24), netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", n)))
		if err != nil {
			t.Fatal(err)
		}
		*m = newMachine(t, h, programs || n > 1)
		(*m).do("ip route add default via 192.0.2.254") // which nobody has
	}
	return b
}

// lan has a network of two addresses on the first machine, with a container on
// it, and another container, try.
func (b *bed) lan(options string) {
	b.t.Helper()
	b.h1.do(`underlayctl conf containerd lan --master eth1 --subnet 192.0.2.0/24 --range-start 192.0.2.10 --range-end 192.0.2.11 ` +
		options + ` 2>&1 >/etc/cni/net.d/10-lan.conflist
		ip netns add c1
		ip netns add try
		cnitool add lan /run/netns/c1`)
}

// cluster starts agents, the first of which embeds the registry.
func (b *bed) cluster() {
	b.t.Helper()
	b.h1.do(`echo '{"registry": {"embedded": {"dataDir": "/var/lib/underlay/etcd", "listen": "192.0.2.1:2379"}}}' >/etc/underlay/underlayd.json
		systemctl start underlayd`)
	b.h2.do(`echo '{"registry": {"etcd": {"endpoints": ["http://192.0.2.1:2379"]}}}' >/etc/underlay/underlayd.json
		systemctl start underlayd`)
}

// pods makes a pool and a network, and has it on both machines with a container
// each; addresses are FROM and TO.
func (b *bed) pods(backend string) {
	b.t.Helper()
	b.h1.do(`underlayctl pool create pods --subnet 10.5.0.0/16 --kind routed
		echo '{"version": 1, "name": "pods", "tenant": "", "pool": "pods", ` + backend + `}' | underlayctl network create -`)
	chain := `{"type": "hostgw", "ipam": {"type": "underlay", "pool": "pods"}}`
	if strings.Contains(backend, "vxlan") {
		chain += `, {"type": "vxlan", "mode": "routed"}`
	}
	for _, m := range []*machine{b.h1, b.h2} {
		m.do(`echo '{"cniVersion": "1.1.0", "name": "pods", "plugins": [` + chain + `]}' >/etc/cni/net.d/10-pods.conflist`)
	}
	b.podsMeet()
}

// podsMeet attaches a container on each machine to the network pods; FROM and TO
// become their addresses.
func (b *bed) podsMeet() {
	b.t.Helper()
	for _, m := range []*machine{b.h1, b.h2} {
		m.do("ip netns add try")
		b.within("an ADD on "+m.Name, func() bool {
			_, err := m.run("cnitool add pods /run/netns/try")
			return err == nil
		})
	}
	const address = `underlayctl address list --state held -o json | grep -om1 '10\.5\.[0-9.]*[0-9]'`
	from, to := b.h1.do(address), b.h2.do(address)
	b.h1.env["FROM"], b.h1.env["TO"] = from, to
	b.h2.env["FROM"], b.h2.env["TO"] = to, from
	b.within("the containers meet", b.meet)
}

// segment makes a segment, VNI 5001, with a container of that name on each
// machine, of which the second's address is TO.
func (b *bed) segment(name string) {
	b.t.Helper()
	for m, addr := range map[*machine]string{b.h1: "10.7.0.10", b.h2: "10.7.0.20"} {
		m.do(`echo '{"cniVersion": "1.1.0", "name": "red", "plugins": [
				{"type": "vxlan", "mode": "segment", "master": "eth1", "vni": 5001},
				{"type": "macvlan", "ipam": {"type": "underlay", "subnet": "10.7.0.0/24", "rangeStart": "` + addr + `", "rangeEnd": "` + addr + `"}}
			]}' >/etc/cni/net.d/red.conflist
			ip netns add ` + name + `
			cnitool add red /run/netns/` + name)
	}
	b.h1.env["TO"] = "10.7.0.20"
}

// meet says whether the containers of the network pods reach each other.
func (b *bed) meet() bool {
	_, err := b.h1.run("ip netns exec try ping -c 1 -W 2 $TO")
	return err == nil
}

// within waits for something to become true.
func (b *bed) within(what string, f func() bool) {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("never: %s", what)
		}
	}
}
