package documents

import "strings"

// causes make what the sections of conf/TROUBLESHOOTING.md are about. What they
// return looks whether it is gone when all commands have been run.
var causes = map[string]func(*bed) (remedied func()){
	"Where to look first": func(b *bed) func() {
		b.cluster()
		b.lan("")
		return nil
	},
	"A configuration is refused": func(b *bed) func() {
		b.lan("")
		b.h1.do("sed -i s/rangeStart/rangStart/ /etc/cni/net.d/10-lan.conflist")
		return nil
	},
	"No address is left": func(b *bed) func() {
		b.lan("")
		b.h1.do("ip netns add c2; cnitool add lan /run/netns/c2; ip netns del c2")
		return func() { b.h1.do("cnitool add lan /run/netns/try") }
	},
	"ADD waits after a boot": func(b *bed) func() {
		b.cluster()
		b.pods(`"backend": "hostgw"`)
		b.h1.do("cnitool del pods /run/netns/try; systemctl stop underlayd; rm -r /run/underlay")
		return nil
	},
	"The parent cannot be used": func(b *bed) func() {
		b.lan("")
		b.h1.do("ip link set eth1 down")
		return nil
	},
	"The host does not reach its containers": func(b *bed) func() {
		b.lan("")
		if out, err := b.h1.run("ping -c 1 -W 1 192.0.2.10"); err == nil {
			b.t.Errorf("the host reaches its container:\n%s", out)
		}
		return func() {
			b.h1.do(`cnitool del lan /run/netns/c1
				sed -i 's/"master": "eth1",/&"hostAccess": true,/' /etc/cni/net.d/10-lan.conflist
				cnitool add lan /run/netns/c1
				ping -c 1 -W 10 192.0.2.10`)
		}
	},
	"Two machines have one address": func(b *bed) func() {
		b.h2.do("ip addr add 192.0.2.10/24 dev eth1")
		b.lan("") // c1 has .11
		return nil
	},
	"Peers are unreachable": func(b *bed) func() {
		b.cluster()
		b.pods(`"backend": "hostgw"`)
		// They are on one wire, and know nothing of it.
		b.h1.do("ip route add 198.51.100.2/32 dev eth1")
		b.h2.do("ip addr add 198.51.100.2/32 dev eth1; ip addr del 192.0.2.2/24 dev eth1; ip -6 addr flush dev eth1 scope global; ip route add 192.0.2.1/32 dev eth1; ip route replace default via 192.0.2.1")
		return nil
	},
	"Packets do not arrive": func(b *bed) func() {
		b.cluster()
		b.pods(`"backend": "hostgw"`)
		return nil
	},
	"Docker or a firewall drops what is forwarded": func(b *bed) func() {
		b.cluster()
		b.pods(`"backend": "hostgw"`)
		b.h1.do("iptables-nft -P FORWARD DROP")
		if b.meet() {
			b.t.Error("packets pass a policy that drops them")
		}
		return nil
	},
	"A segment works on one host only": func(b *bed) func() {
		b.cluster()
		b.segment("try")
		b.within("the segment's containers meet", b.meet)
		b.h1.do("sysctl -qw net.bridge.bridge-nf-call-iptables=1; iptables -P FORWARD DROP")
		if b.meet() {
			b.t.Error("packets pass a policy that drops them")
		}
		return func() { b.within("the segment's containers meet again", b.meet) }
	},
	"Big packets get lost": func(b *bed) func() {
		b.cluster()
		b.pods(`"backend": "vxlan", "vni": 1`)
		return nil
	},
	"The ledger is refused": func(b *bed) func() {
		b.lan("")
		b.h1.do("rm /var/lib/cni/underlay/ledger.db")
		return func() { b.h1.do("underlayctl ledger check") }
	},
	"etcd was restored": func(b *bed) func() {
		b.cluster()
		b.pods(`"backend": "hostgw"`)
		b.h1.do(`systemctl stop underlayd
			cp -a /var/lib/underlay/etcd /var/lib/underlay/copy
			systemctl start underlayd
			for n in $(seq 20); do underlayctl pool create more$n --subnet 10.6.$n.0/24 --kind routed; done`)
		b.within("the other node has seen what will be lost", func() bool {
			out, _ := b.h2.run("underlayctl event list --kind poolChanged")
			return strings.Contains(out, "more20")
		})
		b.h1.do(`systemctl stop underlayd
			rm -r /var/lib/underlay/etcd
			mv /var/lib/underlay/copy /var/lib/underlay/etcd
			systemctl start underlayd`)
		return func() {
			b.within("all nodes have spoken", func() bool {
				out, err := b.h1.run("underlayctl registry status")
				return err == nil && missing([]string{"Waits for: ..."}, out) != "" && missing([]string{"Frozen: ..."}, out) != ""
			})
		}
	},
}
