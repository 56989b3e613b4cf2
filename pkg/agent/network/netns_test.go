package network

import (
	"testing"
)

func TestThreeHosts(t *testing.T) {
	b := newBed(t)
	var hosts []*host
	for range 3 {
		h := b.host()
		h.start(noDrops)
		hosts = append(hosts, h)
	}
	n1, n2, n3 := hosts[0], hosts[1], hosts[2]
	// A node that has something of a pool gets what it lacks of the other family.
	b.lease(n1.id(), "2001:db8:5::/122")
	b.lease(n2.id(), "2001:db8:5::40/122")
	b.lease(n3.id(), "2001:db8:5::80/122")
	b.lease(n1.id(), "10.5.0.0/26")
	b.lease(n2.id(), "10.5.0.64/26")
	b.lease(n3.id(), "10.5.0.128/26")
	b.lease(n3.id(), "10.5.1.0/26")
	n1.awaitRoutes("routes to the others", `unreachable 10.5.0.0/26 metric 1048576
10.5.0.64/26 via 192.0.2.2 dev eth1
10.5.0.128/26 via 192.0.2.3 dev eth1
10.5.1.0/26 via 192.0.2.3 dev eth1
unreachable 2001:db8:5::/122 dev lo metric 1048576
2001:db8:5::40/122 via 2001:db8::2 dev eth1 metric 1024
2001:db8:5::80/122 via 2001:db8::3 dev eth1 metric 1024
`)
	n3.awaitRoutes("routes to the others", `10.5.0.0/26 via 192.0.2.1 dev eth1
10.5.0.64/26 via 192.0.2.2 dev eth1
unreachable 10.5.0.128/26 metric 1048576
unreachable 10.5.1.0/26 metric 1048576
2001:db8:5::/122 via 2001:db8::1 dev eth1 metric 1024
2001:db8:5::40/122 via 2001:db8::2 dev eth1 metric 1024
unreachable 2001:db8:5::80/122 dev lo metric 1048576
`)
}
