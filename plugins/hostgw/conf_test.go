package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestParse(t *testing.T) {
	t.Parallel()
	const ipam = `"ipam":{"type":"underlay","subnet":"10.5.1.0/24"}`
	peers := func(list string) string { return `{"name":"n",` + ipam + `,"peers":[` + list + `]}` }
	const good = `{"prefix":"10.5.2.0/24","via":"192.0.2.2"}`
	tests := []struct {
		name, conf, want string // want "" loads
	}{
		{"least", `{"name":"n",` + ipam + `}`, ""},
		{"chained", `{"name":"n"}`, ""},
		{"chained, with peers", `{"name":"n","peers":[` + good + `]}`, ""},
		{"peers of both families", peers(good + `,{"prefix":"fd05:0:0:2::/64","via":"2001:db8::2"}`), ""},
		{"cluster pool", `{"name":"n","ipam":{"type":"underlay","pool":"p"}}`, ""},
		{"bridge of 15 characters", `{"name":"n","bridge":"abcdefghijklmno",` + ipam + `}`, ""},
		{"bridge of 16 characters", `{"name":"n","bridge":"abcdefghijklmnop",` + ipam + `}`, `bridge: "abcdefghijklmnop" is no interface name`},
		{"bridge with a slash", `{"name":"n","bridge":"a/b",` + ipam + `}`, `bridge: "a/b" is no interface name`},
		{"bridge is a folder", `{"name":"n","bridge":"..",` + ipam + `}`, `bridge: ".." is no interface name`},
		{"bridge is the master", `{"name":"n","bridge":"eth1","master":"eth1",` + ipam + `}`, `bridge: "eth1" is the master, too`},
		{"bridge without ipam", `{"name":"n","bridge":"ul0"}`, `bridge: "ul0": without ipam nothing is put on a bridge`},
		{"peers of a cluster pool", `{"name":"n","ipam":{"type":"underlay","pool":"p"},"peers":[` + good + `]}`, `peers: those of network "n" are in the registry`},
		{"peers of a network", `{"name":"n","network":"w",` + ipam + `,"peers":[` + good + `]}`, `peers: those of network "w" are in the registry`},
		{"peers of a network, chained", `{"name":"n","network":"w","peers":[` + good + `]}`, `peers: those of network "w" are in the registry`},
		{"no prefix", peers(`{"via":"192.0.2.2"}`), `peers[0].prefix: "" is no prefix`},
		{"an address for a prefix", peers(good + `,{"prefix":"10.5.3.1","via":"192.0.2.3"}`), `peers[1].prefix: "10.5.3.1" is no prefix`},
		{"host bits", peers(`{"prefix":"10.5.2.7/24","via":"192.0.2.2"}`), `peers[0].prefix: 10.5.2.7/24 is an address in 10.5.2.0/24`},
		{"default route", peers(`{"prefix":"0.0.0.0/0","via":"192.0.2.2"}`), "peers[0].prefix: 0.0.0.0/0 would take the place"},
		{"mapped prefix", peers(`{"prefix":"::ffff:10.5.2.0/120","via":"192.0.2.2"}`), "peers[0].prefix: ::ffff:10.5.2.0/120 is IPv4 written as IPv6"},
		{"twice", peers(good + `,` + good), "peers[1].prefix: 10.5.2.0/24 is that of peers[0], too"},
		{"no via", peers(`{"prefix":"10.5.2.0/24"}`), `peers[0].via: "" is no IP address`},
		{"via of another family", peers(`{"prefix":"10.5.2.0/24","via":"2001:db8::2"}`), "peers[0].via: 2001:db8::2 is of another address family"},
		{"via link-local", peers(`{"prefix":"fd05:0:0:2::/64","via":"fe80::2"}`), "peers[0].via: fe80::2 is no address that another host is known by"},
		{"via with a zone", peers(`{"prefix":"fd05:0:0:2::/64","via":"2001:db8::2%eth1"}`), "peers[0].via: 2001:db8::2%eth1 has a zone"},
		{"via group", peers(`{"prefix":"10.5.2.0/24","via":"224.0.0.1"}`), "peers[0].via: 224.0.0.1 is no address"},
		{"via broadcast", peers(`{"prefix":"10.5.2.0/24","via":"255.255.255.255"}`), "peers[0].via: 255.255.255.255 is no address"},
		{"via mapped", peers(`{"prefix":"fd05:0:0:2::/64","via":"::ffff:192.0.2.2"}`), "peers[0].via: ::ffff:192.0.2.2 is IPv4 written as IPv6"},
		{"groups", peers(`{"prefix":"239.0.0.0/8","via":"192.0.2.2"}`), "peers[0].prefix: 239.0.0.0/8 has no containers"},
		{"multicast", peers(`{"prefix":"224.0.0.0/4","via":"192.0.2.2"}`), "peers[0].prefix: 224.0.0.0/4 has no containers"},
		{"loopback", peers(`{"prefix":"127.0.0.0/8","via":"192.0.2.2"}`), "peers[0].prefix: 127.0.0.0/8 has no containers"},
		{"link-local prefix", peers(`{"prefix":"fe80::/64","via":"2001:db8::2"}`), "peers[0].prefix: fe80::/64 has no containers"},
		{"wrong type", `{"name":"n","ipMasq":"yes"}`, "ipMasq: a string cannot stand here"},
		{"no JSON", `{"name":`, "network configuration: unexpected end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := parse([]byte(tt.conf))
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			var told *types.Error
			if errors.As(err, &told) && strings.HasPrefix(tt.want, "peers") && told.Code != types.ErrInvalidNetworkConfig {
				t.Errorf("code %d", told.Code)
			}
		})
	}
}

// The agent keeps a network that has a cluster pool or is named; no other.
func TestCluster(t *testing.T) {
	t.Parallel()
	for conf, want := range map[string]string{
		`{"name":"n"}`:               "",
		`{"name":"n","network":"w"}`: "w",
		`{"name":"n","ipam":{"type":"underlay","pool":"p"}}`:            "n",
		`{"name":"n","network":"w","ipam":{"type":"host-local"}}`:       "w",
		`{"name":"n","ipam":{"type":"whereabouts","pool":"p"}}`:         "",
		`{"name":"n","ipam":{"type":"underlay","subnet":"10.0.0.0/8"}}`: "",
	} {
		c, err := parse([]byte(conf))
		if err != nil || c.cluster() != want {
			t.Errorf("%s: network %q, %v, want %q", conf, c.cluster(), err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"n","bridge":"ul0","peers":[{"prefix":"10.5.2.0/24","via":"192.0.2.2"}],"ipam":{"type":"underlay"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err != nil {
			return
		}
		for _, p := range c.Peers {
			if p.Prefix == "" || p.Via == "" {
				t.Fatalf("loaded with peer %+v", p)
			}
		}
	})
}
