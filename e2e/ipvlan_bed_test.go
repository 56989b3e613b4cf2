package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// ipvlan is lan for that plugin. In l3 and l3s the addresses are of a subnet
// behind the host, since nobody asks by ARP for them.
func ipvlan(t *testing.T, h *lab.Host, mode, flag string, more keys) string {
	t.Helper()
	conf := keys{"type": "ipvlan", "mode": mode, "flag": flag}
	if mode != "l2" {
		conf["ipam"] = behind(h)
	}
	maps.Copy(conf, more)
	return lan(t, h, conf)
}

// behind is the pool of the subnets behind a host.
func behind(h *lab.Host) json.RawMessage {
	v4, v6 := subnetsBehind(h)
	return json.RawMessage(fmt.Sprintf(`{"type": "underlay", "ranges": [
		[{"subnet": "%s0/24", "rangeStart": "%[1]s10", "rangeEnd": "%[1]s29"}],
		[{"subnet": "%[2]s/64", "rangeStart": "%[2]s10", "rangeEnd": "%[2]s29"}]]}`, v4, v6))
}

// subnetsBehind are the prefixes that are routed to a host.
func subnetsBehind(h *lab.Host) (v4, v6 string) {
	if h.Name == "h1" {
		return "198.51.100.", "2001:db8:1::"
	}
	return "203.0.113.", "2001:db8:2::"
}

// newIpvlanBed is newBed for a mode: in l3 and l3s, hosts know each other as
// the way to what is behind them. What is behind themselves they look for on
// the wire, so that they can ask for it, though nobody answers.
func newIpvlanBed(t *testing.T, mode string) *bed {
	t.Helper()
	b := newBed(t)
	if mode != "l2" {
		leadsTo(t, b.h2, b.h1, "via 192.0.2.1", "via 2001:db8::1")
		leadsTo(t, b.h1, b.h2, "via 192.0.2.2", "via 2001:db8::2")
		leadsTo(t, b.h1, b.h1, "dev eth1", "dev eth1")
	}
	return b
}

// leadsTo has a host take this way to the subnets behind another.
func leadsTo(t *testing.T, h, other *lab.Host, way4, way6 string) {
	t.Helper()
	v4, v6 := subnetsBehind(other)
	ip(t, h.Namespace, "route replace "+v4+"0/24 "+way4, "route replace "+v6+"/64 "+way6)
}

// ip runs lines of iproute2's batch language, up to the first that fails.
func ip(t *testing.T, n *lab.Namespace, lines ...string) {
	t.Helper()
	mustDo(t, n, "sh", "-c", `printf '%s\n' "$@" | ip -batch -`, "ip", strings.Join(lines, "\n"))
}

// quiet is silent for several pairs, from the first to the second, at once.
func quiet(t *testing.T, pairs ...[2]station) {
	t.Helper()
	var all sync.WaitGroup
	for _, p := range pairs {
		all.Go(func() { silent(t, p[0], p[1]) })
	}
	all.Wait()
}

// both are a pair of stations in both directions.
func both(a, b station) [][2]station { return [][2]station{{a, b}, {b, a}} }

// stationAddrs parses addresses.
func stationAddrs(texts ...string) (addrs []netip.Addr) {
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}
