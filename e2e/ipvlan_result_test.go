package e2e_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// told is what a result says, in words.
func told(r *current.Result) (lines []string) {
	for _, i := range r.Interfaces {
		lines = append(lines, "interface "+i.Name+" "+i.Mac+" mtu "+strconv.Itoa(i.Mtu)+" in "+i.Sandbox)
	}
	for _, ip := range r.IPs {
		line := "address " + ip.Address.String()
		if ip.Gateway != nil {
			line += " by " + ip.Gateway.String()
		}
		if ip.Interface == nil || *ip.Interface != 0 {
			line += " of another interface"
		}
		lines = append(lines, line)
	}
	for _, route := range r.Routes {
		line := "route " + route.Dst.String()
		if route.GW != nil {
			line += " by " + route.GW.String()
		}
		lines = append(lines, line)
	}
	return lines
}

// The result says what the link is, and the link is what the result says. In l3
// and l3s no route has a gateway, and the way out is the link.
func TestIpvlanResult(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	const ranges = `"ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10#", "gateway": "192.0.2.254"}],
		[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10#", "gateway": "2001:db8::fe"}]]`
	const routes = `, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "203.0.113.0/24", "gw": "192.0.2.253"}]`
	addrs := []string{"address 192.0.2.10#/24 by 192.0.2.254", "address 2001:db8::10#/64 by 2001:db8::fe"}
	theirs := []string{"address 192.0.2.10/24 by 192.0.2.1", "address 2001:db8::10/64 by 2001:db8::1"}
	way := func(families, way string) (commands map[string]string) {
		commands = map[string]string{}
		for family := range strings.FieldsSeq(families) {
			commands["ip "+family+" route show default"] = way
		}
		return commands
	}
	tests := []struct {
		name string
		conf keys
		mtu  string
		want []string
		// shown is what commands in the container print the beginning of.
		shown map[string]string
	}{
		{"l2", pool(ranges), "1500", addrs, way("-4 -6", "")},
		{"l2 with routes", pool(ranges + routes), "1500", append(addrs[:2:2], "route 0.0.0.0/0", "route 203.0.113.0/24 by 192.0.2.253"),
			way("-4", "default via 192.0.2.254 dev eth0")},
		{"l2 with MTU", merged(pool(ranges), keys{"mtu": 1400}), "1400", addrs, nil},
		{"l2 without addresses", keys{"ipam": nil}, "1500", nil, way("-4 -6", "")},
		{"l3", merged(pool(ranges), keys{"mode": "l3"}), "1500", append(addrs[:2:2], "route 0.0.0.0/0", "route ::/0"), way("-4 -6", "default dev eth0")},
		{"l3s with routes", merged(pool(ranges+routes), keys{"mode": "l3s", "mtu": 1400}), "1400", append(addrs[:2:2], "route 0.0.0.0/0", "route 203.0.113.0/24", "route ::/0"),
			way("-4 -6", "default dev eth0")},
		{"l3 with host-local", keys{"mode": "l3", "ipam": merged(hostLocal, keys{"routes": []keys{{"dst": "0.0.0.0/0"}}})}, "1500", append(theirs[:2:2], "route 0.0.0.0/0", "route ::/0"),
			way("-4 -6", "default dev eth0")},
		{"l2 with host-local", keys{"ipam": hostLocal}, "1500", theirs, nil},
	}
	h := oneHost(t)
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			number := strings.NewReplacer("#", strconv.Itoa(i)) // each has addresses of its own
			name := fmt.Sprintf("n%d", i)
			conf := lan(t, h, merged(keys{"type": "ipvlan", "name": name}, test.conf))
			c1, result := come(t, h, name, number.Replace(conf), ours, reference)
			mac := hostStation(t, h).mac
			want := append([]string{"interface eth0 " + mac + " mtu " + test.mtu + " in " + c1.Path}, test.want...)
			for i := range want {
				want[i] = number.Replace(want[i])
			}
			if diff := cmp.Diff(want, told(result)); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			link := mustLink(t, c1.Namespace, "eth0")
			if link.Kind != "ipvlan" || link.MAC != mac || strconv.Itoa(link.MTU) != test.mtu || !link.Up {
				t.Errorf("the link is %+v", link)
			}
			for command, want := range test.shown {
				got := mustDo(t, c1.Namespace, strings.Fields(command)...)
				if want == "" && got != "" || !strings.HasPrefix(got, want) {
					t.Errorf("%s: %q, want %q", command, got, want)
				}
			}
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))
			c1.del()
		})
	}
}

// A container that has another way out keeps it: only what nothing leads to goes
// to a layer 3 link.
func TestIpvlanSecondInterface(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	h := oneHost(t)
	c1, _ := come(t, h, "c1", lan(t, h, keys{"vlan": 100, "ipam": oneAddress(`, "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.254"}]`)}))
	rt := *c1.rt
	rt.IfName = "net1"
	conf := ipvlan(t, h, "l3", "bridge", nil)
	result, err := c1.cni.Add(t.Context(), conf, &rt)
	if err != nil {
		t.Fatal(err)
	}
	if got := told(result); got[len(got)-1] != "route ::/0" || strings.Contains(strings.Join(got, "\n"), "route 0.0.0.0/0") {
		t.Errorf("result is %q", got)
	}
	shown := mustDo(t, c1.Namespace, "ip", "route", "show", "default")
	if !strings.HasPrefix(shown, "default via 192.0.2.254 dev eth0") || strings.Contains(shown, "net1") {
		t.Errorf("default route is %q", shown)
	}
	wantOK(t, "CHECK", c1.cni.Check(t.Context(), conf, &rt))
	wantOK(t, "DEL", c1.cni.Del(t.Context(), conf, &rt))
	mustLink(t, c1.Namespace, "eth0")
}

// Chained, master and addresses are those of the plugins before.
func TestIpvlanChained(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	before := func(more keys) keys {
		return merged(keys{"cniVersion": "1.1.0", "interfaces": []keys{{"name": "veth7", "sandbox": "/run/netns/other"}, {"name": "eth1"}}}, more)
	}
	ips := keys{"ips": []keys{{"address": "192.0.2.77/24", "gateway": "192.0.2.254", "interface": 1}, {"address": "2001:db8::77/64"}},
		"routes": []keys{{"dst": "203.0.113.0/24"}}, "dns": keys{"nameservers": []string{"192.0.2.53"}}}
	tests := []struct {
		name string
		conf keys
		want []string
		dns  bool
	}{
		{"l2", keys{"prevResult": before(ips)}, []string{"address 192.0.2.77/24 by 192.0.2.254", "address 2001:db8::77/64", "route 203.0.113.0/24"}, true},
		{"l3s", keys{"mode": "l3s", "prevResult": before(ips)}, []string{"address 192.0.2.77/24 by 192.0.2.254", "address 2001:db8::77/64", "route 203.0.113.0/24", "route 0.0.0.0/0", "route ::/0"}, true},
		{"master alone", keys{"prevResult": before(nil)}, nil, false},
		{"addresses of its own", keys{"prevResult": before(ips), "ipam": oneAddress("")}, []string{"address 192.0.2.10/24 by 192.0.2.1"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			conf := placed(t, b.h1, merged(keys{"type": "ipvlan", "master": nil, "ipam": nil}, test.conf))
			c1, rt := container(t, b.h1, "c1")
			out, err := call{verb: "ADD", plugin: "ipvlan", rt: rt}.run(t, b.h1, conf)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := create.CreateFromBytes(out)
			if err != nil {
				t.Fatal(err)
			}
			result, err := current.NewResultFromResult(raw)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, told(result)[1:], cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			var want []string
			for _, ip := range result.IPs {
				want = append(want, ip.Address.String())
			}
			var got []string
			for _, p := range mustLink(t, c1, "eth0").Addrs {
				if !p.Addr().IsLinkLocalUnicast() {
					got = append(got, p.String())
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("addresses of the link (-want +got):\n%s", diff)
			}
			if test.name == "l2" {
				reaches(t, station{Namespace: c1, addrs: stationAddrs("192.0.2.77", "2001:db8::77")}, hostStation(t, b.h2))
			}
			if dns := result.DNS.Nameservers; (len(dns) == 1) != test.dns {
				t.Errorf("DNS is %v", dns)
			}
			for range 2 {
				_, err = call{verb: "DEL", plugin: "ipvlan", rt: rt}.run(t, b.h1, conf)
				wantOK(t, "DEL", err)
			}
			wantNoLink(t, c1)
			wantNothingHeld(t, b.h1)
		})
	}
}
