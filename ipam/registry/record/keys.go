package record

import (
	"net/netip"
	"strings"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// Prefix of all keys but those in LiveFolder. A new major version of the shapes
// gets another.
const Prefix = "/underlay/v1/"

// LiveFolder has the signs of life. Every node follows what is below Prefix, and
// of a thousand that come and go at once nobody is to hear as often.
const LiveFolder = "/underlay/live/v1/"

// Folders below Prefix, and the one key that is none.
const (
	ClusterKey    = Prefix + "cluster"
	PoolFolder    = Prefix + "pool/"
	NetworkFolder = Prefix + "network/"
	TenantFolder  = Prefix + "tenant/"
	BlockFolder   = Prefix + "block/"
	NodeFolder    = Prefix + "node/"
	GoneFolder    = Prefix + "gone/"
	WantFolder    = Prefix + "want/"
)

// BlockKey is the key of a block of the pool with the UUID. A pool that is
// made again under its old name gets another UUID, and so other blocks.
func BlockKey(pool string, cidr netip.Prefix) string {
	return BlockFolder + pool + "/" + strings.ReplaceAll(cidr.String(), "/", "_")
}

// ParseBlockKey is the inverse of BlockKey.
func ParseBlockKey(key string) (pool string, cidr netip.Prefix, ok bool) {
	pool, text, ok := strings.Cut(strings.TrimPrefix(key, BlockFolder), "/")
	if !ok || !ValidUUID(pool) {
		return "", netip.Prefix{}, false
	}
	cidr, err := netip.ParsePrefix(strings.Replace(text, "_", "/", 1))
	return pool, cidr, err == nil && BlockKey(pool, cidr) == key
}

// WantKey is the key of a node's flag for a pool.
func WantKey(pool string, n lease.Node) string { return WantFolder + pool + "/" + string(n) }
