package main

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	const own = `"ipam": {"type": "underlay", "subnet": "10.5.1.0/24"}`
	peers := func(list string) string { return `"peers": [` + list + `], ` + own }
	for _, tt := range []struct{ name, keys, cluster, want string }{
		{"routed", own, "", ""},
		{"on a bridge", `"bridge": "ul0", ` + own, "", ""},
		{"cluster pool", `"ipam": {"type": "underlay", "pool": "pods"}`, "n", ""},
		{"cluster network of another name", `"network": "pods", "ipam": {"type": "underlay", "pool": "pods"}`, "pods", ""},
		{"a pool of another plugin", `"ipam": {"type": "whereabouts", "pool": "pods"}`, "", ""},
		{"chained", `"network": "pods"`, "pods", ""},
		{"peers", peers(`{"prefix": "10.5.2.0/24", "via": "192.0.2.2"}, {"prefix": "fd05::/64", "via": "2001:db8::2"}`), "", ""},

		{"type", `"bridge": 7, ` + own, "", "bridge"},
		{"long name", `"bridge": "a-name-too-long-x", ` + own, "", `bridge: "a-name-too-long-x" is no interface name`},
		{"a path", `"bridge": "../ul0", ` + own, "", `bridge: "../ul0" is no interface name`},
		{"the master", `"bridge": "eth1", "master": "eth1", ` + own, "", `bridge: "eth1" is the master`},
		{"a bridge without addresses", `"bridge": "ul0"`, "", "bridge: \"ul0\": without ipam"},
		{"peers of a cluster", `"network": "pods", ` + peers(`{"prefix": "10.5.2.0/24", "via": "192.0.2.2"}`), "pods", `peers: those of network "pods" are in the registry`},
		{"prefix", peers(`{"prefix": "10.5.2.0", "via": "192.0.2.2"}`), "", `peers[0].prefix: "10.5.2.0" is no prefix`},
		{"via", peers(`{"prefix": "10.5.2.0/24", "via": "h2"}`), "", `peers[0].via: "h2" is no IP address`},
		{"host bits", peers(`{"prefix": "10.5.2.1/24", "via": "192.0.2.2"}`), "", "peers[0].prefix: 10.5.2.1/24 is an address in 10.5.2.0/24"},
		{"everything", peers(`{"prefix": "::/0", "via": "2001:db8::2"}`), "", "peers[0].prefix: ::/0 would take the place"},
		{"mapped", peers(`{"prefix": "::ffff:10.5.2.0/120", "via": "2001:db8::2"}`), "", "peers[0].prefix: ::ffff:10.5.2.0/120 is IPv4 written as IPv6"},
		{"twice", peers(`{"prefix": "10.5.2.0/24", "via": "192.0.2.2"}, {"prefix": "10.5.2.0/24", "via": "192.0.2.3"}`), "", "peers[1].prefix: 10.5.2.0/24 is that of peers[0]"},
		{"family", peers(`{"prefix": "10.5.2.0/24", "via": "2001:db8::2"}`), "", "peers[0].via: 2001:db8::2 is of another address family"},
		{"link-local", peers(`{"prefix": "fd05::/64", "via": "fe80::2"}`), "", "peers[0].via: fe80::2 is no address"},
		{"loopback", peers(`{"prefix": "10.5.2.0/24", "via": "127.0.0.1"}`), "", "peers[0].via: 127.0.0.1 is no address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := parse([]byte(`{"cniVersion": "1.1.0", "name": "n", "type": "hostgw", ` + tt.keys + `}`))
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %q", err, tt.want)
			}
			if got := c.cluster(); got != tt.cluster {
				t.Errorf("cluster network %q, want %q", got, tt.cluster)
			}
		})
	}
}
