package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
)

func TestRecordOfAnAllocation(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	s.p.Sets = append(s.p.Sets, set(t, "2001:db8::/64"))
	req := request(s.p, "a")
	req.MACPrefix, req.Owner, req.Uses = "02:42", "ns/pod", ipam.Uses{Parent: "eth1", HostAccess: true}
	got, err := s.l.Allocate(req, nil)
	if err != nil {
		t.Fatal(err)
	}
	mac, err := ipam.DeriveMAC("02:42", "lan", s.l.id, netip.MustParseAddr("10.0.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	byValue := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	prefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	want := ipam.Allocation{MAC: mac, Addresses: []ipam.Address{
		{Prefix: netip.MustParsePrefix("10.0.0.2/24"), Gateway: netip.MustParseAddr("10.0.0.1")},
		{Prefix: netip.MustParsePrefix("2001:db8::2/64"), Gateway: netip.MustParseAddr("2001:db8::1")},
	}}
	if diff := cmp.Diff(want, got, byValue, prefixes); diff != "" {
		t.Errorf("allocation (-want +got):\n%s", diff)
	}
	rec := ipam.Record{Version: record.Version, Pool: "lan", Address: want.Addresses[0].Prefix, Gateway: want.Addresses[0].Gateway,
		State: ipam.Held, Attachment: att("a"), Runtime: "ctr", Netns: req.Netns, BootID: "boot-1", MAC: mac, Owner: "ns/pod", Since: s.c.now}
	rec6 := rec
	rec6.Address, rec6.Gateway = want.Addresses[1].Prefix, want.Addresses[1].Gateway
	wantAtt := ipam.AttachmentRecord{Version: record.AttachmentVersion(req.Uses, 0), Attachment: att("a"), Runtime: "ctr", Netns: req.Netns, BootID: "boot-1", MAC: mac,
		Uses: req.Uses, Addresses: []netip.Addr{rec.Address.Addr(), rec6.Address.Addr()}, Since: s.c.now}
	gotAtt, recs, found, err := s.l.Attachment(att("a"))
	if err != nil || !found {
		t.Fatal(found, err)
	}
	if diff := cmp.Diff(wantAtt, gotAtt, byValue); diff != "" {
		t.Errorf("attachment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]ipam.Record{rec, rec6}, recs, byValue, prefixes); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	released := s.release("a")
	if diff := cmp.Diff(ipam.Released{Records: recs, Uses: req.Uses}, released, byValue, prefixes); diff != "" {
		t.Errorf("released (-want +got):\n%s", diff)
	}
}

// A known attachment whose container was started anew keeps its address, and
// its record follows it.
func TestKnownAttachment(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	s.add("a")
	born := s.c.now
	tests := []struct {
		name   string
		change func(*ipam.AllocateRequest)
		fresh  bool // the record is made anew
	}{
		{"same", func(*ipam.AllocateRequest) {}, false},
		{"asks for what it has", ips("10.0.0.2"), false},
		{"another namespace", func(r *ipam.AllocateRequest) { r.Netns.Inode++ }, true},
		{"a MAC", func(r *ipam.AllocateRequest) { r.MAC = "02:00:00:00:00:09" }, true},
		{"a VLAN", func(r *ipam.AllocateRequest) { r.Uses = ipam.Uses{Parent: "eth1", VLAN: 7} }, true},
		{"an owner", ownedBy("ns/pod"), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.c.add(time.Minute)
			req := request(s.p, "a")
			tt.change(&req)
			got, err := s.l.Allocate(req, nil)
			if err != nil || !got.Known || addrs(got) != "10.0.0.2" || got.MAC != req.MAC {
				t.Fatalf("allocate: %+v, %v", got, err)
			}
			rec, _, _, err := s.l.Attachment(att("a"))
			if err != nil {
				t.Fatal(err)
			}
			if tt.fresh != rec.Since.Equal(s.c.now) || !tt.fresh && !rec.Since.Equal(born) {
				t.Errorf("since %s, now %s", rec.Since, s.c.now)
			}
			if rec.Netns != req.Netns || rec.Uses != req.Uses || rec.MAC != req.MAC {
				t.Errorf("record %+v", rec)
			}
			sound(t, s.l)
		})
	}
}

func TestRequestedAddresses(t *testing.T) {
	s := newScene(t, "10.0.0.0/24", "10.1.0.0/24 10.1.0.10-10.1.0.19")
	s.p.Sets = append(s.p.Sets, set(t, "2001:db8::/64"))
	s.add("holder", ips("10.0.0.9"))
	tests := []struct {
		name string
		ips  []string
		want string // the addresses, or the error
	}{
		{"none", nil, "10.0.0.2 2001:db8::3"},
		{"one", []string{"10.1.0.12"}, "10.1.0.12 2001:db8::4"},
		{"the other family", []string{"2001:db8::77"}, "10.0.0.3 2001:db8::77"},
		{"both, in any order", []string{"2001:db8::78", "10.0.0.8"}, "10.0.0.8 2001:db8::78"},
		{"IPv4 as IPv6", []string{"::ffff:10.0.0.20"}, "10.0.0.20 2001:db8::5"},
		{"outside", []string{"10.2.0.1"}, `ips[0]: 10.2.0.1 is outside of the ranges of pool "lan"`},
		{"in the subnet, outside of the range", []string{"10.1.0.20"}, `ips[0]: 10.1.0.20 is outside of the ranges of pool "lan"`},
		{"gateway", []string{"2001:db8::79", "10.0.0.1"}, "ips[1]: 10.0.0.1 is the gateway of 10.0.0.0/24"},
		{"excluded", []string{"10.0.0.255"}, "ips[0]: 10.0.0.255 is excluded from 10.0.0.0-10.0.0.255"},
		{"two for one set", []string{"10.0.0.30", "10.1.0.15"}, "ips[1]: 10.1.0.15 is a second address from 10.0.0.0-10.0.0.255 of 10.0.0.0/24, 10.1.0.10-10.1.0.19 of 10.1.0.0/24; each range set gives one"},
		{"twice the same", []string{"10.0.0.30", "10.0.0.30"}, "ips[1]: 10.0.0.30 is a second address from 10.0.0.0-10.0.0.255 of 10.0.0.0/24, 10.1.0.10-10.1.0.19 of 10.1.0.0/24; each range set gives one"},
		{"held", []string{"10.0.0.9"}, "requested address 10.0.0.9 is held: lan/holder/eth0"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := s.try(fmt.Sprint("c", i), ips(tt.ips...))
			if err != nil {
				if err.Error() != tt.want {
					t.Errorf("error %q, want %q", err, tt.want)
				}
				return
			}
			if addrs(got) != tt.want {
				t.Errorf("addresses %s, want %s", addrs(got), tt.want)
			}
		})
	}
}

func TestBadNames(t *testing.T) {
	s := newScene(t, "10.0.0.0/24")
	tests := []struct {
		change func(*ipam.AllocateRequest)
		place  string
	}{
		{func(r *ipam.AllocateRequest) { r.Attachment.Network = "" }, "name"},
		{func(r *ipam.AllocateRequest) { r.Attachment.ContainerID = "" }, "CNI_CONTAINERID"},
		{func(r *ipam.AllocateRequest) { r.Attachment.IfName = "eth\x000" }, "CNI_IFNAME"},
		{func(r *ipam.AllocateRequest) { r.Owner = strings.Repeat("o", 40000) }, "owner"},
		{func(r *ipam.AllocateRequest) { r.Uses.Parent = "\x00" }, "master"},
		{func(r *ipam.AllocateRequest) { r.Pool.Name = "" }, "name"},
	}
	for _, tt := range tests {
		var field *ipam.FieldError
		if _, err := s.try("a", tt.change); !errors.As(err, &field) || field.Place != tt.place {
			t.Errorf("want an error about %s, got %v", tt.place, err)
		}
	}
	s.states()
}
