package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// A sub-interface that is made on demand goes with its last user, whoever gives
// out the addresses and whatever way the user goes.
func TestVLANGoesWithLast(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	del := func(t *testing.T, h *lab.Host, a *attachment) { wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt)) }
	tests := []struct {
		name string
		conf keys
		// leave is how both users go.
		leave func(t *testing.T, h *lab.Host, a *attachment)
	}{
		{"macvlan", keys{"type": "macvlan"}, del},
		{"ipvlan l2", keys{"type": "ipvlan"}, del},
		{"ipvlan l3s", keys{"type": "ipvlan", "mode": "l3s", "flag": "private"}, del},
		{"macvlan with host-local", keys{"type": "macvlan", "ipam": hostLocal}, del},
		{"ipvlan without addresses", keys{"type": "ipvlan", "ipam": keys{}}, del},
		{"netns gone, and DEL twice", keys{"type": "ipvlan"}, func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, h.Namespace, "ip", "netns", "delete", a.ID)
			del(t, h, a)
			del(t, h, a)
		}},
		{"netns not told, no prevResult", keys{"type": "macvlan"}, func(t *testing.T, h *lab.Host, a *attachment) {
			rt := *a.rt
			rt.NetNS = ""
			_, err := call{verb: "DEL", rt: &rt}.run(t, h, placed(t, h, keys{"vlan": 100}))
			wantOK(t, "DEL", err)
			wantNoLink(t, a.Namespace)
		}},
		{"vlan not told any more", keys{"type": "ipvlan"}, func(t *testing.T, h *lab.Host, a *attachment) {
			a.conf = lan(t, h, keys{"type": "ipvlan"})
			del(t, h, a)
		}},
		{"forgotten by the runtime", keys{"type": "ipvlan", "mode": "l3"}, func(t *testing.T, h *lab.Host, a *attachment) {
			collectOthers(t, h, keys{"type": "ipvlan", "mode": "l3", "vlan": 100}, a)
		}},
	}
	h := oneHost(t)
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conf := lan(t, h, merged(test.conf, keys{"vlan": 100}))
			c1, _ := come(t, h, fmt.Sprintf("a%d", i), conf, ours, reference)
			c2, _ := come(t, h, fmt.Sprintf("b%d", i), conf, ours, reference)
			there(t, h, on100)
			test.leave(t, h, c1)
			there(t, h, on100)
			wantOK(t, "CHECK of the other", c2.cni.Check(t.Context(), c2.conf, c2.rt))
			test.leave(t, h, c2)
			there(t, h)
			wantNothingHeld(t, h)
		})
	}
}

var hostLocal = keys{"type": "host-local", "ranges": json.RawMessage(`[
	[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.19"}],
	[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10", "rangeEnd": "2001:db8::19"}]]`)}

// collectOthers is a GC to which all that the ledger knows is valid but gone.
func collectOthers(t *testing.T, h *lab.Host, conf keys, gone *attachment) {
	t.Helper()
	valid := []types.GCAttachment{}
	for _, rec := range readBooks(t, h).Attachments {
		if a := rec.Attachment; a.ContainerID != gone.rt.ContainerID {
			valid = append(valid, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	_, err := call{verb: "GC", plugin: conf["type"].(string)}.run(t, h, placed(t, h, merged(conf, keys{"cni.dev/valid-attachments": valid})))
	wantOK(t, "GC", err)
}

// One that was there before stays, whatever name it is used by.
func TestVLANStays(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	tests := []struct {
		name, made string // by its owner
		conf       keys
	}{
		{"by id", on100, keys{"master": lab.Parent, "vlan": 100}},
		{"by id, with an alias", on100 + " alias tenants", keys{"master": lab.Parent, "vlan": 100}},
		{"by its name", on100, keys{"master": on100}},
		{"by another name", "tenants", keys{"master": "tenants"}},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			ip(t, h.Namespace, "link add link eth1 name "+test.made+" up type vlan id 100")
			name := strings.Fields(test.made)[0]
			conf := lan(t, h, merged(test.conf, keys{"type": kinds[i%len(kinds)]}))
			c1, c2 := attach(t, h, "c1", conf), attach(t, h, "c2", conf)
			reaches(t, c1.station, c2.station)
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), conf, c1.rt))
			c1.del()
			c2.del()
			there(t, h, name)
			wantNothingHeld(t, h)
			_, err := call{verb: "GC", plugin: kinds[i%len(kinds)]}.run(t, h, placed(t, h, merged(test.conf, keys{"cni.dev/valid-attachments": nil})))
			wantOK(t, "GC", err)
			there(t, h, name)
		})
	}
}

// A master that is named like a sub-interface and does not exist is made, and
// is the same as a vlan of its parent: they have it as long as either has a
// user.
func TestVLANByMaster(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			byName := lan(t, h, keys{"type": kind, "master": on100})
			byID := lan(t, h, keys{"type": kind, "vlan": 100})
			twice := lan(t, h, keys{"type": kind, "master": on100, "vlan": 100})
			c1, c2, c3 := attach(t, h, "c1", byName), attach(t, h, "c2", byID), attach(t, h, "c3", twice)
			meet(t, c1.station, c2.station)
			reaches(t, c1.station, c3.station)
			there(t, h, on100)
			for _, c := range []*attachment{c1, c2, c3} {
				wantOK(t, "CHECK", c.cni.Check(t.Context(), c.conf, c.rt))
			}
			c1.add() // when it is there
			c1.del()
			c3.del()
			there(t, h, on100)
			c1.add()
			c2.del()
			there(t, h, on100)
			c1.del()
			there(t, h)
			wantNothingHeld(t, h)
		})
	}
}

// What ADD cannot use, or may not, it leaves as it was, and makes nothing.
func TestVLANDenied(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	tests := []struct {
		name  string
		conf  keys
		make  []string // lines of iproute2's
		code  uint
		texts []string
	}{
		{"another kind has the name", keys{"vlan": 100}, []string{"link add eth1.100 up type bridge"},
			codeParent, []string{"vlan", `"eth1.100"`, `VLAN 100 of "eth1"`}},
		{"another VLAN has the name", keys{"vlan": 100}, []string{"link add link eth1 name eth1.100 up type vlan id 7"},
			codeParent, []string{"vlan", `"eth1.100"`, `VLAN 100 of "eth1"`}},
		{"a VLAN of another parent has the name", keys{"vlan": 100}, []string{"link add br1 up type bridge", "link add link br1 name eth1.100 up type vlan id 100"},
			codeParent, []string{"vlan", `"eth1.100"`, `VLAN 100 of "eth1"`}},
		{"it has another name", keys{"vlan": 100}, []string{"link add link eth1 name tenants up type vlan id 100"},
			codeParent, []string{"vlan", `"eth1.100"`, `"tenants"`, "master"}},
		{"a sub-interface by name is down", keys{"master": on100}, []string{"link add link eth1 name eth1.100 type vlan id 100"},
			codeParent, []string{"master", `"eth1.100"`, "down"}},
		{"a sub-interface by id is down", keys{"vlan": 100}, []string{"link add link eth1 name eth1.100 type vlan id 100"},
			codeParent, []string{"master", `"eth1.100"`, "down"}},
		{"two VLANs at once", keys{"master": on100, "vlan": 200}, nil, codeConfig, []string{"vlan", "200", `"eth1.100"`}},
		{"no parent of that name", keys{"master": "eth7.100"}, nil, codeParent, []string{"master", `"eth7"`}},
		{"no VLAN of that number", keys{"master": "eth1.4095"}, nil, codeParent, []string{"master", `"eth1.4095"`}},
		{"parent down", keys{"vlan": 100}, []string{"link set eth1 down"}, codeParent, []string{"master", `"eth1"`, "down"}},
		{"MTU above the parent's", keys{"vlan": 100, "mtu": 1501}, nil, codeConfig, []string{"mtu", "1501", "1500"}},
		{"MTU above the sub-interface's", keys{"vlan": 100, "mtu": 1500}, []string{"link add link eth1 name eth1.100 mtu 1400 up type vlan id 100"},
			codeConfig, []string{"mtu", "1500", "1400"}},
		{"host without address", keys{"vlan": 100, "hostAccess": true}, []string{"addr flush dev eth1"}, codeConfig, []string{"hostAccess", `"eth1"`, "address"}},
		{"late: a route without way", merged(keys{"vlan": 100}, subnet(`"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]`)), nil,
			codeConfig, []string{"routes", "203.0.113.1"}},
	}
	h := oneHost(t)
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			defer asBefore(t, h)
			if len(test.make) > 0 {
				ip(t, h.Namespace, test.make...)
			}
			denied(t, h, fmt.Sprintf("c%d", i), lan(t, h, merged(keys{"type": kinds[i%len(kinds)]}, test.conf)), test.code, test.texts...)
		})
	}
}

// The host reaches containers on a VLAN too: by its address there, or by that of
// the parent where it has none.
func TestVLANHostAccess(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	for _, kind := range kinds {
		for _, at := range []string{on100, lab.Parent} {
			t.Run(kind+", "+at, func(t *testing.T) {
				t.Parallel()
				h := oneHost(t)
				if at == on100 {
					ip(t, h.Namespace, "addr flush dev eth1", "link add link eth1 name eth1.100 up type vlan id 100",
						"addr add 192.0.2.1/24 dev eth1.100", "addr add 2001:db8::1/64 dev eth1.100 nodad")
				}
				none := remainsOf(t, h)
				conf := lan(t, h, keys{"type": kind, "vlan": 100, "hostAccess": true})
				c1, c2 := attach(t, h, "c1", conf), attach(t, h, "c2", conf)
				meet(t, stationOn(t, h, at), c1.station)
				reaches(t, c1.station, c2.station)
				wantOK(t, "CHECK", c1.cni.Check(t.Context(), conf, c1.rt))
				c1.del()
				meet(t, stationOn(t, h, at), c2.station)
				c2.del()
				wantUndone(t, none, remainsOf(t, h))
			})
		}
	}
}

// What an ADD has left that died while it made a sub-interface is its own to
// finish and to remove, by whatever name.
func TestVLANUnfinished(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	const group = " group 1970168946" // "undr", as pkg/link has it
	for parent, carrier := range map[string]string{lab.Parent: on100, "enp101s0f0np0v1": "ul92d1a6.100"} {
		t.Run(parent, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			secondWire(t, b, "enp101s0f0np0v1")
			h, conf := b.h1, keys{"type": "ipvlan", "master": parent, "vlan": 100}
			died := func() { ip(t, h.Namespace, "link add link "+parent+" name "+carrier+group+" type vlan id 100") }
			c1 := attach(t, h, "c1", lan(t, h, conf)) // makes the ledger
			c1.del()
			died()
			_, err := call{verb: "GC", plugin: "ipvlan"}.run(t, h, placed(t, h, merged(conf, keys{"cni.dev/valid-attachments": nil})))
			wantOK(t, "GC", err)
			there(t, h)
			died()
			c1.add()
			there(t, h, carrier)
			mustDo(t, h.Namespace, "ip", "link", "show", "dev", parent+".100")
			c1.del()
			there(t, h)
		})
	}
}
