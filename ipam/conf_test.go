package ipam

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadRanges(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, object string
		want         []string // String of each set
		gateways     []string // of the first range of each set
		size         []uint64
	}{
		{"inline, as host-local", `{"type":"underlay","subnet":"10.1.2.0/24"}`,
			[]string{"10.1.2.1-10.1.2.254 of 10.1.2.0/24"}, []string{"10.1.2.1"}, []uint64{253}},
		{"bounds and exclusions", `{"ranges":[[{"subnet":"192.0.2.0/24","rangeStart":"192.0.2.100","rangeEnd":"192.0.2.199","gateway":"192.0.2.1","exclude":["192.0.2.150","192.0.2.160/30","192.0.2.190-192.0.2.250"]}]]}`,
			[]string{"192.0.2.100-192.0.2.199 of 192.0.2.0/24"}, []string{"192.0.2.1"}, []uint64{85}},
		{"point to point", `{"ranges":[[{"subnet":"10.0.0.0/31"}],[{"subnet":"10.0.1.7/32"}],[{"subnet":"fd00::/127"}]]}`,
			[]string{"10.0.0.0-10.0.0.1 of 10.0.0.0/31", "10.0.1.7 of 10.0.1.7/32", "fd00::-fd00::1 of fd00::/127"},
			[]string{"invalid IP", "invalid IP", "invalid IP"}, []uint64{2, 1, 2}},
		{"IPv6 without subnet-router anycast", `{"ranges":[[{"subnet":"2001:db8::/64"}]]}`,
			[]string{"2001:db8::1-2001:db8::ffff:ffff:ffff:ffff of 2001:db8::/64"}, []string{"2001:db8::1"}, []uint64{1<<63 - 1}},
		{"inline before ranges", `{"subnet":"10.1.0.0/24","ranges":[[{"subnet":"10.2.0.0/24"}]]}`,
			[]string{"10.1.0.1-10.1.0.254 of 10.1.0.0/24", "10.2.0.1-10.2.0.254 of 10.2.0.0/24"}, []string{"10.1.0.1", "10.2.0.1"}, []uint64{253, 253}},
		{"two ranges of one subnet", `{"ranges":[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.9"},{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.20"}]]}`,
			[]string{"10.1.0.1-10.1.0.9 of 10.1.0.0/24, 10.1.0.20-10.1.0.254 of 10.1.0.0/24"}, []string{"10.1.0.1"}, []uint64{8 + 235}},
		{"what nerdctl writes", `{"ranges":[[{"gateway":"10.4.0.1","ipRange":"10.4.0.128/25","rangeEnd":"10.4.0.255","rangeStart":"10.4.0.129","subnet":"10.4.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"type":"underlay"}`,
			[]string{"10.4.0.129-10.4.0.254 of 10.4.0.0/24"}, []string{"10.4.0.1"}, []uint64{126}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := Load(json.RawMessage(tt.object), "net", nil)
			if err != nil {
				t.Fatal(err)
			}
			var sets, gateways []string
			var size []uint64
			for _, s := range c.Pool.Sets {
				sets, gateways, size = append(sets, s.String()), append(gateways, s[0].Gateway.String()), append(size, s.Size())
			}
			if d := cmp.Diff(tt.want, sets); d != "" {
				t.Errorf("sets (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.gateways, gateways); d != "" {
				t.Errorf("gateways (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.size, size); d != "" {
				t.Errorf("sizes (-want +got):\n%s", d)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, object, want string
		code               uint
	}{
		{"unknown key", `{"subnett":"10.0.0.0/24"}`, `ipam.subnett: unknown key (value "10.0.0.0/24"); did you mean "subnet"?`, CodeUnsupportedField},
		{"wrong case", `{"ranges":[[{"subnet":"10.0.0.0/24","rangestart":"10.0.0.5"}]]}`, `ipam.ranges[0][0].rangestart: unknown key (value "10.0.0.5"); did you mean "rangeStart"?`, CodeUnsupportedField},
		{"far from any key", `{"zzzzzz":1}`, `ipam.zzzzzz: unknown key (value 1)`, CodeUnsupportedField},
		{"wrong type", `{"subnet":5}`, `ipam.subnet: a number cannot stand here, want string`, CodeDecode},
		{"null", `null`, `ipam: must be an object, not null`, CodeDecode},
		{"nothing", `{}`, `ipam.ranges: is missing`, CodeInvalidConfig},
		{"bounds without subnet", `{"rangeStart":"10.0.0.1"}`, `ipam.subnet: is missing`, CodeInvalidConfig},
		{"empty set", `{"ranges":[[]]}`, `ipam.ranges[0]: a range set needs`, CodeInvalidConfig},
		{"gateway outside", `{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.2.0/24","gateway":"10.0.1.1"}]]}`, `ipam.ranges[0][1].gateway: 10.0.1.1 is outside 10.0.2.0/24`, CodeInvalidConfig},
		{"overlap", `{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.128/25"}]]}`, `ipam.ranges[1][0]: 10.0.0.129-10.0.0.254 overlaps ipam.ranges[0][0]: 10.0.0.1-10.0.0.254`, CodeInvalidConfig},
		{"swapped", `{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.5"}`, `ipam.rangeEnd: 10.0.0.5 comes before rangeStart 10.0.0.9`, CodeInvalidConfig},
		{"end outside", `{"subnet":"10.0.0.0/24","rangeEnd":"10.0.1.5"}`, `ipam.rangeEnd: 10.0.1.5 is outside 10.0.0.0/24`, CodeInvalidConfig},
		{"host bits", `{"subnet":"10.0.0.7/24"}`, `ipam.subnet: 10.0.0.7/24 has host bits set; the subnet is 10.0.0.0/24`, CodeInvalidConfig},
		{"mapped", `{"subnet":"::ffff:10.0.0.0/120"}`, `ipam.subnet: ::ffff:10.0.0.0/120 is an IPv4 subnet in IPv6 form`, CodeInvalidConfig},
		{"multicast", `{"subnet":"224.0.0.0/24"}`, `ipam.subnet: 224.0.0.0/24 cannot be given to interfaces`, CodeInvalidConfig},
		{"mixed families", `{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]}`, `ipam.ranges[0][1].subnet: fd00::/64 is of another address family`, CodeInvalidConfig},
		{"all excluded", `{"subnet":"10.0.0.0/30","exclude":["10.0.0.2"]}`, `ipam: no address of 10.0.0.1-10.0.0.2 is left`, CodeInvalidConfig},
		{"exclude outside", `{"subnet":"10.0.0.0/24","exclude":["10.0.9.1"]}`, `ipam.exclude[0]: 10.0.9.1 is outside 10.0.0.0/24`, CodeInvalidConfig},
		{"exclude nonsense", `{"subnet":"10.0.0.0/24","exclude":["10.0.0.1","x-y"]}`, `ipam.exclude[1]: "x-y" is not an address`, CodeInvalidConfig},
		{"exclude backwards", `{"subnet":"10.0.0.0/24","exclude":["10.0.0.9-10.0.0.1"]}`, `ipam.exclude[0]: "10.0.0.9-10.0.0.1" ends before it begins`, CodeInvalidConfig},
		{"duration", `{"subnet":"10.0.0.0/24","coolDown":"30"}`, `ipam.coolDown: "30" is not a duration`, CodeInvalidConfig},
		{"sticky", `{"subnet":"10.0.0.0/24","sticky":"yes"}`, `ipam.sticky: "yes" is none of false, true, "strict"`, CodeInvalidConfig},
		{"stickyFor alone", `{"subnet":"10.0.0.0/24","stickyFor":"1h"}`, `ipam.stickyFor: "1h" has no meaning`, CodeInvalidConfig},
		{"route", `{"subnet":"10.0.0.0/24","routes":[{"dst":"0.0.0.0/0"},{"dst":"10/8"}]}`, `ipam.routes[1].dst: "10/8" is not a prefix`, CodeInvalidConfig},
		{"route family", `{"subnet":"10.0.0.0/24","routes":[{"dst":"::/0","gw":"10.0.0.1"}]}`, `ipam.routes[0].gw: 10.0.0.1 is of another address family`, CodeInvalidConfig},
		{"cluster pool and ranges", `{"pool":"tenant-a","ranges":[[{"subnet":"10.0.0.0/24"}]]}`, `ipam.ranges: cannot stand beside ipam.pool: the registry says which addresses pool "tenant-a" has`, CodeInvalidConfig},
		{"cluster pool and subnet", `{"pool":"a","subnet":"10.0.0.0/24"}`, `ipam.subnet: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool and rangeStart", `{"pool":"a","rangeStart":"10.0.0.5"}`, `ipam.rangeStart: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool and rangeEnd", `{"pool":"a","rangeEnd":"10.0.0.5"}`, `ipam.rangeEnd: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool and gateway", `{"pool":"a","gateway":"10.0.0.1"}`, `ipam.gateway: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool and exclude", `{"pool":"a","exclude":["10.0.0.1"]}`, `ipam.exclude: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool and coolDown", `{"pool":"a","coolDown":"5s"}`, `ipam.coolDown: cannot stand beside ipam.pool: it belongs to pool "a" in the registry; change it there: underlayctl pool update`, CodeInvalidConfig},
		{"cluster pool and quarantine", `{"pool":"a","quarantine":"5s"}`, `ipam.quarantine: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool and sticky", `{"pool":"a","sticky":false}`, `ipam.sticky: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool and stickyFor", `{"pool":"a","stickyFor":"5s"}`, `ipam.stickyFor: cannot stand beside ipam.pool`, CodeInvalidConfig},
		{"cluster pool of no name", `{"pool":"a/b"}`, `ipam.pool: "a/b" may hold letters, digits and`, CodeInvalidConfig},
		{"cluster pool and a route", `{"pool":"a","routes":[{"dst":"10/8"}]}`, `ipam.routes[0].dst: "10/8" is not a prefix`, CodeInvalidConfig},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(json.RawMessage(tt.object), "net", nil)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Fatalf("error %v\nwant  %s...", err, tt.want)
			}
			if got := err.(*FieldError).CNICode(); got != tt.code {
				t.Errorf("code %d, want %d", got, tt.code)
			}
		})
	}
}

func TestLoadCluster(t *testing.T) {
	t.Parallel()
	got, err := Load(json.RawMessage(`{"type":"underlay","pool":"tenant-a","routes":[{"dst":"0.0.0.0/0"}],"resolvConf":"/r","statusOnExhausted":true,"dataDir":"/d","runDir":"/n"}`), "net", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Cluster: "tenant-a", Routes: []Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}}, ResolvConf: "/r", StatusOnExhausted: true, DataDir: "/d", RunDir: "/n"}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	_, err = Load(json.RawMessage(`{"pool":"tenant-a"}`), "net", [][]json.RawMessage{{json.RawMessage(`{"subnet":"10.0.0.0/24"}`)}})
	if err == nil || !strings.HasPrefix(err.Error(), "runtimeConfig.ipRanges: cannot stand beside ipam.pool") {
		t.Errorf("with ranges of the runtime: %v", err)
	}
}

func TestRoutesOf(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, pool, conf, want, refused string }{
		{name: "none", want: `[]`},
		{name: "the pool's", pool: `[{"dst":"0.0.0.0/0"}]`, want: `[{"dst":"0.0.0.0/0"}]`},
		{name: "the configuration's", conf: `[{"dst":"0.0.0.0/0","gw":"192.0.2.1"}]`, want: `[{"dst":"0.0.0.0/0","gw":"192.0.2.1"}]`},
		{name: "the same in another order", pool: `[{"dst":"0.0.0.0/0"},{"dst":"::/0","table":5,"scope":0}]`, conf: `[{"dst":"::/0","scope":0,"table":5},{"dst":"0.0.0.0/0"}]`,
			want: `[{"dst":"0.0.0.0/0"},{"dst":"::/0","table":5,"scope":0}]`},
		{name: "others", pool: `[{"dst":"0.0.0.0/0"}]`, conf: `[{"dst":"0.0.0.0/0","mtu":1400}]`,
			refused: `ipam.routes: [{"dst":"0.0.0.0/0","mtu":1400}] differ from those of pool "red", which are [{"dst":"0.0.0.0/0"}]; leave them out here, or change the pool: underlayctl pool update`},
		{name: "more", pool: `[{"dst":"::/0"}]`, conf: `[{"dst":"::/0"},{"dst":"0.0.0.0/0"}]`, refused: `ipam.routes: [{"dst":"::/0"},{"dst":"0.0.0.0/0"}] differ`},
		{name: "another table", pool: `[{"dst":"::/0","table":5}]`, conf: `[{"dst":"::/0"}]`, refused: `ipam.routes: `},
	}
	load := func(text string) []Route {
		var raw []json.RawMessage
		if text != "" {
			if err := json.Unmarshal([]byte(text), &raw); err != nil {
				t.Fatal(err)
			}
		}
		routes, err := LoadRoutes(raw)
		if err != nil {
			t.Fatal(err)
		}
		return routes
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Pool{Name: "red", Routes: load(tt.pool)}.RoutesOf(load(tt.conf))
			if tt.refused != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.refused) || err.(*FieldError).CNICode() != CodeInvalidConfig {
					t.Errorf("error %v\nwant  %s...", err, tt.refused)
				}
				return
			}
			if text, _ := json.Marshal(append([]Route{}, got...)); err != nil || string(text) != tt.want {
				t.Errorf("got %s, %v; want %s", text, err, tt.want)
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"ranges":[[{"subnet":"192.0.2.0/24","rangeStart":"192.0.2.100","gateway":"192.0.2.1","exclude":["192.0.2.150","192.0.2.7-192.0.2.200"]}]],"routes":[{"dst":"0.0.0.0/0"}],"sticky":"strict"}`))
	f.Add([]byte(`{"subnet":"fd00::/64","coolDown":"1m"}`))
	f.Add([]byte(`{"pool":"tenant-a","routes":[{"dst":"0.0.0.0/0"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Load(data, "net", nil)
		if err != nil {
			return
		}
		if local := len(c.Pool.Sets) > 0; local == (c.Cluster != "") {
			t.Fatalf("loaded %d range sets and cluster pool %q", len(c.Pool.Sets), c.Cluster)
		}
		for _, s := range c.Pool.Sets {
			if s.Size() == 0 {
				t.Fatalf("loaded an empty set: %s", s)
			}
			for _, r := range s {
				if !r.Subnet.Contains(r.First) || !r.Subnet.Contains(r.Last) || r.Last.Less(r.First) {
					t.Fatalf("range %s outside %s", r.Interval, r.Subnet)
				}
				for i, x := range r.Exclude {
					if x.Last.Less(x.First) || i > 0 && x.First.Compare(r.Exclude[i-1].Last) <= 0 {
						t.Fatalf("exclusions out of order: %v", r.Exclude)
					}
				}
			}
			free := func(netip.Addr) (netip.Addr, bool) { return netip.Addr{}, false }
			if a, r, ok := s.Next(netip.Addr{}, free); !ok || !r.Usable(a) {
				t.Fatalf("first of %s is %s, %v", s, a, ok)
			}
		}
	})
}
