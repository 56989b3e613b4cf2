package e2e_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// wantNoStatic: of static networks the host has neither routes nor rules.
func wantNoStatic(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		if left := mustDo(t, h.Namespace, "ip", family, "route", "show", "proto", "142"); left != "" {
			t.Errorf("routes to peers left: %q", left)
		}
	}
	if left := mustDo(t, h.Namespace, "nft", "list", "tables"); strings.Contains(left, "underlay") {
		t.Errorf("rules left: %s", left)
	}
	left, err := filepath.Glob(filepath.Join(h.RunDir, "static.d", "*"))
	left = slices.DeleteFunc(left, func(path string) bool { return filepath.Base(path) == "lock" })
	if err != nil || len(left) > 0 {
		t.Errorf("records left: %v, %v", left, err)
	}
}

// podHost is a host on a segment, and the links that it has before any container.
func podHost(t *testing.T) (h *lab.Host, before []lab.Link) {
	t.Helper()
	h = newBed(t).h1
	return h, hostLinks(t, h)
}

// GC takes away all that attachments have which are valid no more, and nothing
// else.
func TestHostgwGC(t *testing.T) {
	t.Parallel()
	for name, more := range hostgwModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, before := podHost(t)
			gc := func(valid string) error {
				conf := keys{"dataDir": h.DataDir, "runDir": h.RunDir}
				if valid != absent {
					conf["cni.dev/valid-attachments"] = json.RawMessage(valid)
				}
				_, err := call{plugin: "hostgw", verb: "GC"}.run(t, h, pods(t, h, merged(conf, more)))
				return err
			}
			c1, c2, c3 := attach(t, h, "c1", pods(t, h, more)), attach(t, h, "c2", pods(t, h, more)), attach(t, h, "c3", pods(t, h, more))
			wantError(t, gc(absent), codeConfig, "cni.dev/valid-attachments")
			meet(t, c1.station, c2.station)
			mustDo(t, h.Namespace, "ip", "netns", "delete", c3.ID) // which GC is not told of
			wantOK(t, "GC", gc(`[{"containerID": "`+c1.ID+`", "ifname": "eth0"}]`))
			wantNoLink(t, c2.Namespace)
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))
			reaches(t, c1.station, hostStation(t, h))
			if held := readBooks(t, h).held(); len(held) != 1 || len(held[c1.ID]) != 2 {
				t.Errorf("held is %v", held)
			}
			wantOK(t, "GC", gc(`[]`))
			wantNothing(t, h, before, c1.Namespace, c2.Namespace)
			wantNoStatic(t, h)
		})
	}
}

// DEL succeeds whatever is gone, and leaves nothing.
func TestHostgwDel(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, h *lab.Host, c *attachment){
		"netns is not told": func(_ *testing.T, _ *lab.Host, c *attachment) { c.rt.NetNS = "" },
		"netns is gone": func(t *testing.T, h *lab.Host, c *attachment) {
			mustDo(t, h.Namespace, "ip", "netns", "delete", c.ID)
		},
		"master is gone": func(_ *testing.T, _ *lab.Host, c *attachment) {
			c.conf = strings.Replace(c.conf, `"master":"eth1"`, `"master":"gone0"`, 1)
		},
		"bridge is gone": func(t *testing.T, h *lab.Host, _ *attachment) {
			_, _ = h.Exec(t.Context(), "ip", "link", "delete", "ul0") // there is none where it is routed
		},
		"no prevResult": func(t *testing.T, h *lab.Host, c *attachment) { c.forget(h) },
		"peers and table are gone": func(t *testing.T, h *lab.Host, _ *attachment) {
			mustDo(t, h.Namespace, "ip", "route", "flush", "proto", "142")
			mustDo(t, h.Namespace, "nft", "flush", "ruleset")
		},
		"peers cannot be used any more": func(_ *testing.T, _ *lab.Host, c *attachment) {
			c.conf = strings.Replace(c.conf, `"192.0.2.2"`, `"no address"`, 1)
		},
		"run folder is gone": func(t *testing.T, h *lab.Host, c *attachment) {
			// As after a reboot: the kernel has lost everything, too.
			mustDo(t, h.Namespace, "ip", "route", "flush", "proto", "142")
			mustDo(t, h.Namespace, "ip", "-6", "route", "flush", "proto", "142")
			mustDo(t, h.Namespace, "nft", "flush", "ruleset")
			if err := os.RemoveAll(h.RunDir); err != nil {
				t.Fatal(err)
			}
		},
	}
	for mode, more := range hostgwModes {
		for name, spoil := range tests {
			t.Run(mode+", "+name, func(t *testing.T) {
				t.Parallel()
				h, before := podHost(t)
				c := attach(t, h, "c1", pods(t, h, merged(keys{"ipMasq": true}, more)))
				spoil(t, h, c)
				for range 2 {
					wantOK(t, "DEL", c.cni.Del(t.Context(), c.conf, c.rt))
				}
				wantNothing(t, h, before)
				wantNoStatic(t, h)
			})
		}
	}
}

// STATUS says with code 50 why an ADD would fail.
func TestHostgwStatus(t *testing.T) {
	t.Parallel()
	h := newBed(t).h1
	far := []keys{{"prefix": "10.5.9.0/24", "via": "203.0.113.9"}}
	for _, test := range []struct {
		name  string
		more  keys
		code  uint
		texts []string
	}{
		{name: "ready"},
		{name: "ready, bridge to be made", more: keys{"bridge": "ul0", "ipMasq": true}},
		{name: "master is missing", more: keys{"master": "nosuch0"}, code: codeStatus, texts: []string{"master", "nosuch0"}},
		{name: "peer is on no segment", more: keys{"peers": far}, code: codeStatus, texts: []string{"peers[0].via: 203.0.113.9 is on no segment"}},
		{name: "no place for the ledger", more: keys{"dataDir": "/proc/none"}, code: codeStatus, texts: []string{"/proc/none"}},
		{name: "invalid", more: keys{"bridge": "eth1"}, code: codeConfig, texts: []string{"bridge"}},
		{name: "chained, peer is on no segment", more: keys{"ipam": keys{}, "peers": far}, code: codeStatus, texts: []string{"peers[0].via"}},
	} {
		err := h.CNI(ours).Status(t.Context(), pods(t, h, test.more))
		if test.code == 0 {
			wantOK(t, "STATUS, "+test.name, err)
		} else {
			wantError(t, err, test.code, test.texts...)
		}
	}
}

// Two networks with static peers stand beside each other, and one stays whole
// when the other goes.
func TestHostgwTwoNetworks(t *testing.T) {
	t.Parallel()
	h, before := podHost(t)
	a := attach(t, h, "c1", pods(t, h, keys{"ipMasq": true}))
	b := attach(t, h, "c2", pods(t, h, keys{
		"name": "others", "bridge": "ul0", "peers": []keys{{"prefix": "10.6.2.0/24", "via": "192.0.2.2"}},
		"ipam": json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.6.1.0/24"}], [{"subnet": "fd06:0:0:1::/64"}]]}`),
	}))
	meet(t, a.station, b.station)
	a.del()
	routes := mustDo(t, h.Namespace, "ip", "route", "show", "proto", "142")
	if !strings.Contains(routes, "10.6.2.0/24") || strings.Contains(routes, "10.5.2.0/24") {
		t.Errorf("routes to peers: %q", routes)
	}
	wantOK(t, "CHECK", b.cni.Check(t.Context(), b.conf, b.rt))
	meet(t, b.station, hostStation(t, h))
	b.del()
	wantNothing(t, h, before, a.Namespace, b.Namespace)
	wantNoStatic(t, h)
}

// One address family is enough, for containers and for hosts.
func TestHostgwOneFamily(t *testing.T) {
	t.Parallel()
	for family, other := range map[string]string{"-4": "-6", "-6": "-4"} {
		for mode, more := range hostgwModes {
			t.Run(family+", "+mode, func(t *testing.T) {
				t.Parallel()
				b := newBed(t)
				var all []*attachment
				for _, h := range []*lab.Host{b.h1, b.h2} {
					mustDo(t, h.Namespace, "ip", other, "addr", "flush", "dev", "eth1", "scope", "global")
					own, far := h.Name[1:], string('3'-h.Name[1]+'0')
					conf := keys{"ipMasq": true, "peers": []keys{{"prefix": "10.5." + far + ".0/24", "via": "192.0.2." + far}},
						"ipam": json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.5.` + own + `.0/24"}]]}`)}
					if family == "-6" {
						conf = keys{"ipMasq": true, "peers": []keys{{"prefix": "fd05:0:0:" + far + "::/64", "via": "2001:db8::" + far}},
							"ipam": json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "fd05:0:0:` + own + `::/64"}]]}`)}
					}
					c := &attachment{t: t, cni: h.CNI(ours), conf: pods(t, h, merged(conf, more))}
					c.Namespace, c.rt = container(t, h, "c"+own)
					c.addAny()
					if len(c.addrs) != 1 {
						t.Errorf("addresses %v", c.addrs)
					}
					all = append(all, c)
				}
				meet(t, all[0].station, all[1].station)
				for i, h := range []*lab.Host{b.h1, b.h2} {
					wantOK(t, "CHECK", all[i].cni.Check(t.Context(), all[i].conf, all[i].rt))
					all[i].del()
					wantNoStatic(t, h)
				}
			})
		}
	}
}

// Somebody else's bridge is used if it has the gateways, and left as it is.
func TestHostgwForeignBridge(t *testing.T) {
	t.Parallel()
	h := newBed(t).h1
	conf := pods(t, h, keys{"bridge": "br0"})
	n, rt := container(t, h, "c1")
	refused := func(code uint, texts ...string) {
		t.Helper()
		before := hostLinks(t, h)
		_, err := h.CNI(ours).Add(t.Context(), conf, rt)
		wantError(t, err, code, texts...)
		wantNothing(t, h, before, n)
	}
	ip(t, h.Namespace, "link add br0 address 02:00:00:00:00:b0 type bridge", "link set br0 addrgenmode none") // else its MAC is that of a port
	refused(codeParent, "br0", "ip link set br0 up")
	ip(t, h.Namespace, "link set br0 up")
	refused(codeParent, "br0", "ip addr add 10.5.1.1/24 dev br0")
	ip(t, h.Namespace, "addr add 10.5.1.1/24 dev br0", "addr add fd05:0:0:1::1/64 dev br0 nodad")
	was := mustLink(t, h.Namespace, "br0")
	c1, c2 := attach(t, h, "c2", conf), attach(t, h, "c3", conf)
	meet(t, c1.station, c2.station)
	meet(t, c1.station, hostStation(t, h))
	c1.del()
	c2.del()
	is := mustLink(t, h.Namespace, "br0")
	if len(is.Addrs) != len(was.Addrs) {
		t.Errorf("the bridge has %v, and had %v", is.Addrs, was.Addrs)
	}
	ip(t, h.Namespace, "link delete br0", "link add br0 type veth peer name br1")
	refused(codeParent, `"br0"`, "it is no bridge")
}

// A container reaches itself by an address that the host translates: the bridge
// sends back what came from the port.
func TestHostgwHairpin(t *testing.T) {
	t.Parallel()
	for name, more := range hostgwModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newBed(t).h1
			c := attach(t, h, "c1", pods(t, h, more))
			services := station{Namespace: c.Namespace, addrs: []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:7::7")}}
			mustDo(t, h.Namespace, "nft", "add table inet services; "+
				"add chain inet services to { type nat hook prerouting priority -100; }; "+
				"add rule inet services to ip daddr 198.51.100.7 dnat ip to "+c.addrs[0].String()+"; "+
				"add rule inet services to ip6 daddr 2001:db8:7::7 dnat ip6 to "+c.addrs[1].String()+"; "+
				"add chain inet services from { type nat hook postrouting priority 90; }; "+
				"add rule inet services from ct status dnat masquerade")
			reaches(t, c.station, services)
		})
	}
}

// Where a policy drops what is forwarded, packets pass with fixForwardDrop only.
func TestHostgwForwardDrop(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, h := range []*lab.Host{b.h1, b.h2} {
		mustDo(t, h.Namespace, "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; "+
			"add table ip6 filter; add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }")
	}
	c1, c2 := attach(t, b.h1, "c1", pods(t, b.h1, nil)), attach(t, b.h2, "c2", pods(t, b.h2, nil))
	apart(t, c1.station, c2.station)
	for _, c := range []*attachment{c1, c2} {
		c.again(strings.Replace(c.conf, `{`, `{"fixForwardDrop":true,`, 1))
	}
	meet(t, c1.station, c2.station)
}

// An ADD behind another plugin that is repeated and fails takes nothing from
// the container, which lives; the first one that fails leaves nothing.
func TestHostgwChainedAgain(t *testing.T) {
	t.Parallel()
	h := newBed(t).h1
	n, rt := container(t, h, "c1")
	add := func(via string) error {
		_, err := call{plugin: "hostgw", verb: "ADD", rt: rt}.run(t, h, pods(t, h, keys{
			"dataDir": h.DataDir, "runDir": h.RunDir, "ipam": keys{}, "peers": []keys{{"prefix": "10.5.2.0/24", "via": via}},
			"prevResult": json.RawMessage(`{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "` + rt.NetNS + `"}],
				"ips": [{"address": "10.5.1.2/24", "interface": 0}]}`),
		}))
		return err
	}
	const far, near = "203.0.113.9", "192.0.2.2"
	wantError(t, add(far), codeParent, "peers[0].via: "+far)
	wantNoStatic(t, h)
	for range 2 {
		wantOK(t, "ADD", add(near))
	}
	wantError(t, add(far), codeParent, "peers[0].via: "+far)
	if routes := mustDo(t, h.Namespace, "ip", "route", "show", "proto", "142"); !strings.Contains(routes, "10.5.2.0/24 via "+near) {
		t.Errorf("routes to peers: %q", routes)
	}
	wantNoLink(t, n)
	_, err := call{plugin: "hostgw", verb: "DEL", rt: rt}.run(t, h, pods(t, h, keys{"dataDir": h.DataDir, "runDir": h.RunDir, "ipam": keys{}}))
	wantOK(t, "DEL", err)
	wantNoStatic(t, h)
}

// What was made for a network that the agent keeps is taken back also where the
// configuration has changed to one that no agent keeps, and the other way round.
func TestHostgwChainedChanges(t *testing.T) {
	t.Parallel()
	h, before := podHost(t)
	n, rt := container(t, h, "c1")
	kept, own := keys{"peers": nil, "network": "pods"}, keys{"ipMasq": true}
	run := func(verb string, more keys) {
		t.Helper()
		_, err := call{plugin: "hostgw", verb: verb, rt: rt}.run(t, h, pods(t, h, merged(keys{
			"dataDir": h.DataDir, "runDir": h.RunDir, "ipam": keys{}, "cni.dev/valid-attachments": []string{},
			"prevResult": json.RawMessage(`{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "` + rt.NetNS + `"}],
				"ips": [{"address": "10.5.1.2/24", "interface": 0}]}`),
		}, more)))
		wantOK(t, verb, err)
	}
	for _, then := range []string{"DEL", "GC"} {
		run("ADD", kept)
		if all := readBooks(t, h).Attachments; len(all) != 1 {
			t.Errorf("on record: %+v", all)
		}
		run(then, own)
		wantNothing(t, h, before, n)
		run("ADD", own)
		run(then, kept)
		wantNothing(t, h, before, n)
		wantNoStatic(t, h)
	}
}
