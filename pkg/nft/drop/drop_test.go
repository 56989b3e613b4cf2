package drop

import (
	"fmt"
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Legacy iptables, which nft does not see.
func TestLegacyDrop(t *testing.T) {
	t.Parallel()
	linktest.Need(t, "iptables")
	ns := netnstest.New(t)
	find := func() (found []Drop) {
		t.Helper()
		must(t, ns.Do(func() (err error) {
			found, err = legacyDrops(t.Context())
			return err
		}))
		return found
	}
	if found := find(); len(found) != 0 {
		t.Errorf("nobody has used it, and yet: %v", found)
	}
	netnstest.Run(t, ns, "sh", "-ec", "iptables-legacy -P FORWARD DROP; iptables-legacy -N DOCKER-USER; iptables-legacy -I FORWARD -j DOCKER-USER")
	want := "[filter FORWARD (iptables-legacy) drops what our table accepts; run: iptables-legacy -I DOCKER-USER -m mark --mark 0x20000/0x20000 -j ACCEPT]"
	found := find()
	if got := fmt.Sprint(found); got != want {
		t.Fatalf("got\n%s, want\n%s", got, want)
	}
	must(t, found[0].Fix(t.Context(), ns))
	if found := find(); len(found) != 1 || !found[0].Passes {
		t.Errorf("after the command: %v", found)
	}
}

// What nft says is read, or it is an error.
func FuzzParseChains(f *testing.F) {
	f.Add([]byte(`{"nftables": [{"metainfo": {}}, {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}}]}`))
	f.Fuzz(func(t *testing.T, listing []byte) {
		chains, err := parseChains(listing)
		if err != nil && len(chains) > 0 {
			t.Errorf("%v, %v", chains, err)
		}
	})
}
