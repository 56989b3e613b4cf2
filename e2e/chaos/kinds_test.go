package chaos_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// Pools of the cluster, by name. Those of lan are scarce: hosts ask each other.
var pools = []string{
	`{"version": 1, "name": "lan", "kind": "shared", "blockPrefix": {"ipv4": 29, "ipv6": 125}, "ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.64", "rangeEnd": "192.0.2.95"}],
		[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100", "rangeEnd": "2001:db8::11f"}]]}`,
	`{"version": 1, "name": "seg", "kind": "shared", "expectedNodes": 3, "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}`,
	`{"version": 1, "name": "pods", "kind": "routed", "expectedNodes": 3, "blockPrefix": {"ipv4": 28, "ipv6": 124}, "ranges": [[{"subnet": "10.5.0.0/22"}], [{"subnet": "fd00:5::/112"}]]}`,
	`{"version": 1, "name": "far", "kind": "routed", "expectedNodes": 3, "blockPrefix": {"ipv4": 28, "ipv6": 124}, "ranges": [[{"subnet": "10.6.0.0/22"}], [{"subnet": "fd00:6::/112"}]]}`,
}

// lanSize is how many addresses of each family lan has.
const lanSize = 32

const (
	farVNI  = 7
	segVNI  = 5001
	podsBr  = "ul0"
	refBr   = "ref0"
	farDev  = "vx7"
	segDev  = "vx5001"
	nftOurs = "underlay"
)

var networks = []string{
	`{"version": 1, "name": "pods", "pool": "pods", "backend": "hostgw"}`,
	fmt.Sprintf(`{"version": 1, "name": "far", "pool": "far", "backend": "vxlan", "vni": %d}`, farVNI),
}

type keys map[string]any

// kind is a network, and how containers are attached to it.
type kind struct {
	name string
	// local: each host has a pool of its own.
	local bool
	// onParent: links in containers go with the host's eth1.
	onParent bool
	// others: the main plugin is not ours, so that its links are not known from
	// their names and its ADD cannot be repeated.
	others bool
	// whole: an ADD that fails leaves nothing. Of a chain whose later plugin fails
	// the runtime has to undo what the earlier ones did, and others' plugins leave
	// links.
	whole bool
	// plugins of the chain, on the n-th host, counted from 1.
	plugins func(n int, choose *rand.Rand) []keys
}

// modes of macvlan in which containers reach others on other hosts.
var modes = []string{"bridge", "private", "vepa"}

func pool(name string) keys { return keys{"type": "underlay", "pool": name} }

var kinds = []*kind{
	{name: "lan", whole: true, onParent: true, plugins: func(_ int, choose *rand.Rand) []keys {
		return []keys{{"type": "macvlan", "master": lab.Parent, "mode": modes[choose.IntN(len(modes))], "ipam": pool("lan")}}
	}},
	{name: "near", local: true, whole: true, onParent: true, plugins: func(n int, _ *rand.Rand) []keys {
		return []keys{{"type": "macvlan", "master": lab.Parent, "mode": "bridge", "hostAccess": true, "ipam": json.RawMessage(fmt.Sprintf(
			`{"type": "underlay", "ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.1%d0", "rangeEnd": "192.0.2.1%d9"}],
			[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::2%d0", "rangeEnd": "2001:db8::2%d9"}]]}`, n, n, n, n))}}
	}},
	{name: "pods", whole: true, plugins: func(n int, _ *rand.Rand) []keys {
		c := keys{"type": "hostgw", "master": lab.Parent, "ipMasq": true, "ipam": pool("pods")}
		if n == 3 {
			c["bridge"] = podsBr
		}
		return []keys{c}
	}},
	{name: "far", plugins: func(int, *rand.Rand) []keys {
		return []keys{{"type": "hostgw", "master": lab.Parent, "ipam": pool("far")}, {"type": "vxlan", "mode": "routed"}}
	}},
	{name: "seg", plugins: func(int, *rand.Rand) []keys {
		return []keys{{"type": "vxlan", "mode": "segment", "master": lab.Parent, "vni": segVNI}, {"type": "macvlan", "mode": "bridge", "ipam": pool("seg")}}
	}},
	{name: "ref", local: true, others: true, plugins: func(n int, _ *rand.Rand) []keys {
		return []keys{{"type": "bridge", "bridge": refBr, "ipam": json.RawMessage(fmt.Sprintf(`{"type": "underlay", "ranges": [[{"subnet": "10.8.%d.0/24"}]]}`, n))}}
	}},
}

// conf is the configuration of the network on the n-th host.
func (k *kind) conf(n int, choose *rand.Rand) string {
	text, err := json.Marshal(keys{"cniVersion": "1.1.0", "name": k.name, "plugins": k.plugins(n, choose)})
	if err != nil {
		panic(err) // it is all ours
	}
	return string(text)
}

// scope is where an address of the network on a host has one holder.
func (k *kind) scope(h *host) string {
	if k.local {
		return h.Name + "/" + k.name
	}
	return k.name
}
