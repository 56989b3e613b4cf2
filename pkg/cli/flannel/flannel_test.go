package flannel

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLoad: each document beside the pool and the network that it becomes.
func TestLoad(t *testing.T) {
	t.Parallel()
	documents, err := filepath.Glob("testdata/*.json")
	if err != nil || len(documents) < 5 {
		t.Fatalf("%d documents, %v", len(documents), err)
	}
	for _, file := range documents {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(strings.TrimSuffix(file, ".json") + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			plan, err := Load(text, "pods", "red")
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(plan, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBlocks: the blocks of the pool are the subnets that flannel leases, which
// goes from SubnetMin to SubnetMax in steps.
func TestBlocks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text  string
		first, last string
		n           uint64
	}{
		{"a /16", `"Network":"10.244.0.0/16"`, "10.244.1.0/24", "10.244.255.0/24", 255},
		{"just enough for /24", `"Network":"10.244.4.0/22"`, "10.244.5.0/24", "10.244.7.0/24", 3},
		{"a quarter", `"Network":"10.244.4.0/23"`, "10.244.4.128/25", "10.244.5.128/25", 3},
		{"the smallest", `"Network":"10.244.4.16/28"`, "10.244.4.20/30", "10.244.4.28/30", 3},
		{"host bits", `"Network":"10.244.7.9/16"`, "10.244.1.0/24", "10.244.255.0/24", 255},
		{"length", `"Network":"10.0.0.0/8","SubnetLen":20`, "10.0.16.0/20", "10.255.240.0/20", 4095},
		{"bounds", `"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"`, "10.10.0.0/20", "10.99.0.0/20", 89*16 + 1},
		{"one", `"Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.10.0.0"`, "10.10.0.0/24", "10.10.0.0/24", 1},
		{"from the first", `"Network":"10.244.0.0/16","SubnetMin":"10.244.0.0"`, "10.244.0.0/24", "10.244.255.0/24", 256},
		{"the unspecified address is no bound", `"Network":"10.244.0.0/16","SubnetMin":"0.0.0.0"`, "10.244.1.0/24", "10.244.255.0/24", 255},
		{"IPv6", `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/112"`, "fd00:1::4000/114", "fd00:1::c000/114", 0},
		{"IPv6 with a length", `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/112","IPv6SubnetLen":120,"IPv6SubnetMin":"fd00:1::200"`, "fd00:1::200/120", "fd00:1::ff00/120", 254},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			plan, err := Load([]byte(`{`+tt.text+`,"Backend":{"Type":"host-gw"}}`), "pods", "")
			if err != nil {
				t.Fatal(err)
			}
			g, err := plan.Pool.Grid(0)
			if err != nil {
				t.Fatal(err)
			}
			first, last := netip.MustParsePrefix(tt.first), netip.MustParsePrefix(tt.last)
			if tt.n == 0 {
				// The blocks are smaller than flannel's, and of the same addresses.
				if a, b := g.Block(0), g.Block(g.Len()-1); a.Addr() != first.Addr() || lastOf(b) != lastOf(last) || len(plan.Differs) != 1 {
					t.Errorf("blocks from %s to %s, %q", a, b, plan.Differs)
				}
				return
			}
			if a, b := g.Block(0), g.Block(g.Len()-1); a != first || b != last || g.Len() != tt.n {
				t.Errorf("%d blocks from %s to %s, want %d from %s to %s", g.Len(), a, b, tt.n, first, last)
			}
			// Each of them has an address for a container.
			if _, ok := g.Choose(g.Len()-1, func(p netip.Prefix) bool { return p != last }); !ok {
				t.Errorf("nothing of %s can be given out", last)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	with := func(backend string) string { return `{"Network":"10.244.0.0/16","Backend":` + backend + `}` }
	of := func(keys string) string { return `{` + keys + `,"Backend":{"Type":"host-gw"}}` }
	for _, tt := range []struct{ name, text, want string }{
		{"no object", `[]`, "net-conf: "},
		{"no JSON", `{"Network"`, "net-conf: unexpected end"},
		{"a number for a text", of(`"Network":10`), "net-conf.Network: number is not what flannel has there"},
		{"no network", `{"Backend":{"Type":"vxlan"}}`, "net-conf.Network: is missing"},
		{"no prefix", of(`"Network":"10.244.0.0"`), `net-conf.Network: "10.244.0.0" is not an IPv4 prefix`},
		{"another family", of(`"Network":"fd00::/48"`), "is not an IPv4 prefix"},
		{"neither family", of(`"EnableIPv4":false,"Network":"10.244.0.0/16"`), "net-conf.EnableIPv4: is false"},
		{"no IPv6 network", of(`"Network":"10.244.0.0/16","EnableIPv6":true`), "net-conf.IPv6Network: is missing"},
		{"too small", of(`"Network":"10.244.0.0/29"`), "net-conf.Network: 10.244.0.0/29 is smaller than a /28"},
		{"too small, IPv6", of(`"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/125"`), "net-conf.IPv6Network: fd00::/125 is smaller than a /124"},
		{"too long", of(`"Network":"10.244.0.0/16","SubnetLen":31`), "net-conf.SubnetLen: a /31 has no room"},
		{"too short", of(`"Network":"10.244.0.0/16","SubnetLen":17`), "net-conf.SubnetLen: 10.244.0.0/16 has no room for four"},
		{"no address", of(`"Network":"10.244.0.0/16","SubnetMin":"first"`), `net-conf.SubnetMin: "first" is not an address`},
		{"outside", of(`"Network":"10.244.0.0/16","SubnetMax":"10.245.0.0"`), "net-conf.SubnetMax: 10.245.0.0 is outside 10.244.0.0/16"},
		{"between two", of(`"Network":"10.244.0.0/16","SubnetMin":"10.244.3.7"`), "net-conf.SubnetMin: 10.244.3.7 is not the first address of a /24; 10.244.3.0 is"},
		{"backwards", of(`"Network":"10.244.0.0/16","SubnetMin":"10.244.9.0","SubnetMax":"10.244.8.0"`), "net-conf.SubnetMax: 10.244.8.0 comes before"},
		{"not to be routed", of(`"Network":"224.0.0.0/8"`), "cannot be given to interfaces"},
		{"no backend", `{"Network":"10.244.0.0/16"}`, `means "udp": the backend "udp" is not taken over`},
		{"no type", with(`{}`), `net-conf.Backend.Type: is missing`},
		{"udp", with(`{"Type":"UDP"}`), `"vxlan" does the same in the kernel`},
		{"wireguard", with(`{"Type":"wireguard"}`), `the backend "wireguard" is not taken over: nothing is encrypted here`},
		{"unknown", with(`{"Type":"vlan"}`), `"vlan" is neither "host-gw" nor "vxlan"`},
		{"group policy", with(`{"Type":"vxlan","GBP":true}`), "net-conf.Backend.GBP: a policy would be lost"},
		{"VNI 0", with(`{"Type":"vxlan","VNI":0}`), "net-conf.Backend.VNI: 0 is not between 1 and 16777215"},
		{"port", with(`{"Type":"vxlan","Port":70000}`), "net-conf.Backend.Port: 70000 is not between 1 and 65535"},
		{"a text for a number", with(`{"Type":"vxlan","VNI":"1"}`), "net-conf.Backend.VNI: string is not what flannel has there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if plan, err := Load([]byte(tt.text), "pods", ""); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, error %v, want %q", plan, err, tt.want)
			}
		})
	}
	if _, err := Load([]byte(of(`"Network":"10.244.0.0/16"`)), "two words", ""); err == nil {
		t.Error("a name that is none was taken")
	}
}

// FuzzLoad: whatever comes, there is an error or a plan that can be written down.
func FuzzLoad(f *testing.F) {
	documents, _ := filepath.Glob("testdata/*.json")
	for _, file := range documents {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		plan, err := Load(text, "pods", "")
		if err != nil {
			return
		}
		if _, err := json.Marshal(plan); err != nil {
			t.Fatal(err)
		}
		for i := range plan.Pool.Sets {
			if g, err := plan.Pool.Grid(i); err != nil || g.Len() == 0 {
				t.Fatalf("%d blocks, %v", g.Len(), err)
			}
		}
	})
}
