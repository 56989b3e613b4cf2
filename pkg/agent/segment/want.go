package segment

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/neigh"
)

// want is what this node's ledger says of a segment.
type want struct {
	// parent that peers are reached by, and the one that plugins lock: with a VLAN,
	// another one.
	parent, lock string
	port         int
	since        time.Time
	// endpoints on this node, by MAC.
	endpoints []record.Endpoint
	// odd says, by attachment, why one is no endpoint.
	odd []string
}

func (w want) equal(o want) bool {
	return w.parent == o.parent && w.lock == o.lock && w.port == o.port && slices.Equal(w.odd, o.odd) &&
		slices.EqualFunc(w.endpoints, o.endpoints, func(a, b record.Endpoint) bool { return a.MAC == b.MAC && slices.Equal(a.Addrs, b.Addrs) })
}

// wants reads which segments this node has attachments in.
func wants(l *ledger.Ledger) (map[int]want, error) {
	made := make(map[int]want)
	in := make(map[int]map[string][]netip.Addr)
	odd := make(map[int][]string)
	err := l.Attachments(func(a ipam.AttachmentRecord) error {
		switch s := a.Uses.Segment; {
		case s.VNI == 0:
		case s.Port != 0:
			w, known := made[s.VNI]
			// Two that differ are told apart by who was first.
			if !known || cmp.Or(a.Since.Compare(w.since), cmp.Compare(a.Uses.Parent, w.lock)) < 0 {
				made[s.VNI] = want{parent: carrier(a.Uses), lock: a.Uses.Parent, port: s.Port, since: a.Since}
			}
		default:
			if in[s.VNI] == nil {
				in[s.VNI] = make(map[string][]netip.Addr)
			}
			mac, addrs, err := endpoint(a)
			if err != nil {
				odd[s.VNI] = append(odd[s.VNI], fmt.Sprintf("attachment %s: %v", a.Attachment, err))
				break
			}
			in[s.VNI][mac] = append(in[s.VNI][mac], addrs...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for vni, w := range made {
		for _, mac := range slices.Sorted(maps.Keys(in[vni])) {
			w.endpoints = append(w.endpoints, record.Endpoint{MAC: mac, Addrs: in[vni][mac]})
		}
		w.odd = odd[vni]
		made[vni] = w
	}
	return made, nil
}

// carrier is the interface that the segment's device sits on.
func carrier(u ipam.Uses) string {
	if u.VLAN == 0 {
		return u.Parent
	}
	name, _ := link.VLANName(u.Parent, u.VLAN)
	return name
}

// endpoint is an attachment in the form of the registry.
func endpoint(a ipam.AttachmentRecord) (mac string, addrs []netip.Addr, err error) {
	m, err := neigh.ParseMAC(a.MAC)
	if err == nil && (m == neigh.MAC{} || m[0]&1 != 0) {
		err = fmt.Errorf("%s is the MAC of no station", m)
	}
	for _, x := range a.Addresses {
		addrs = append(addrs, x.Unmap().WithZone(""))
	}
	return m.String(), addrs, err
}
