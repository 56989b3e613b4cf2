package record

import (
	"net/netip"
	"strconv"
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

// ParseBlockKey is the inverse of BlockKey. An agent does it for each change of
// any node's block, so it allocates nothing.
func ParseBlockKey(key string) (pool string, cidr netip.Prefix, ok bool) {
	rest, inside := strings.CutPrefix(key, BlockFolder)
	pool, text, named := strings.Cut(rest, "/")
	addr, bits, sized := strings.Cut(text, "_")
	if !inside || !named || !sized || !ValidUUID(pool) {
		return "", netip.Prefix{}, false
	}
	a, err := netip.ParseAddr(addr)
	n, bad := strconv.Atoi(bits)
	cidr = netip.PrefixFrom(a, n)
	if err != nil || bad != nil || !cidr.IsValid() {
		return "", netip.Prefix{}, false
	}
	// A block can be written in more than one way, and has one key.
	var buf [64]byte
	as := cidr.AppendTo(buf[:0])
	same := len(as) == len(text) && string(as[:len(addr)]) == addr && string(as[len(addr)+1:]) == bits
	return pool, cidr, same
}

// WantKey is the key of a node's flag for a pool.
func WantKey(pool string, n lease.Node) string { return WantFolder + pool + "/" + string(n) }
