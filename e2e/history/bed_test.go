package history_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/underlay-cni/underlay/e2e/cluster"
)

const (
	hosts   = 3
	members = cluster.Members
	// soft has fewer addresses than all workers together want, so that nodes
	// ask each other.
	softPool = `{"version": 1, "name": "soft", "kind": "shared", "sticky": true, "blockPrefix": {"ipv4": 30}, "ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.64", "rangeEnd": "192.0.2.107"}]]}`
	softSize = 44
	// strict keeps what it has for longer than any clock jumps.
	strictPool = `{"version": 1, "name": "strict", "kind": "shared", "sticky": "strict", "stickyFor": "100000h", "blockPrefix": {"ipv4": 30}, "ranges": [
		[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.16", "rangeEnd": "198.51.100.31"}]]}`
	strictSize = 16
)

var strictNet = netip.MustParsePrefix("198.51.100.0/24")

// newBed is a cluster with the pools.
func newBed(t *testing.T) *cluster.Cluster {
	t.Helper()
	c := cluster.New(t, cluster.Config{Bin: bin, Nodes: hosts, Logs: os.Getenv("HISTORY_LOGS")})
	for _, pool := range []string{softPool, strictPool} {
		if _, err := c.Nodes[0].API.CreatePool(t.Context(), []byte(pool)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// conf is the configuration of a network with addresses of a pool.
func conf(n *cluster.Node, pool string) string {
	return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "dataDir": %q, "runDir": %q, "ipam": {"type": "underlay", "pool": %q}}`,
		n.DataDir, n.RunDir, pool)
}
