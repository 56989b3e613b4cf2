package record_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam/registry/record"
)

func TestSegment(t *testing.T) {
	t.Parallel()
	s := record.Segment{Version: 1, VNI: 5001, Node: n1, Name: "n1", VTEP: netip.MustParseAddr("192.0.2.1"), Port: 8472, Endpoints: []record.Endpoint{
		{MAC: "02:00:5e:00:53:01", Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("2001:db8:9::1")}},
		{MAC: "02:00:5e:00:53:02"},
	}}
	const want = `{"version":1,"vni":5001,"node":"` + n1 + `","name":"n1","vtep":"192.0.2.1","port":8472,"endpoints":[` +
		`{"mac":"02:00:5e:00:53:01","addrs":["10.9.0.1","2001:db8:9::1"]},{"mac":"02:00:5e:00:53:02"}]}`
	value := record.EncodeSegment(s)
	if diff := cmp.Diff(want, string(value)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	back, err := record.DecodeSegment(value)
	if diff := cmp.Diff(s, back, opts...); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

// TestSegmentRefuses: what is not a node's part in a segment, whole, is none.
func TestSegmentRefuses(t *testing.T) {
	t.Parallel()
	const head, mac = `{"version":1,"vni":7,"node":"` + n1 + `","name":"a","vtep":"192.0.2.1","port":8472`, `"mac":"02:00:5e:00:53:01"`
	for _, tt := range []struct{ name, value, want string }{
		{"no VNI", strings.Replace(head, `"vni":7`, `"vni":0`, 1) + `}`, "segment.vni: 0"},
		{"VNI too high", strings.Replace(head, `"vni":7`, `"vni":16777216`, 1) + `}`, "segment.vni: 16777216 is not between 1 and 16777215"},
		{"no port", strings.Replace(head, `8472`, `0`, 1) + `}`, "segment.port"},
		{"node by name", strings.Replace(head, n1, `n1`, 1) + `}`, "segment.node"},
		{"name with a slash", strings.Replace(head, `"a"`, `"a/b"`, 1) + `}`, "segment.name"},
		{"no VTEP", strings.Replace(head, `192.0.2.1`, ``, 1) + `}`, "segment.vtep"},
		{"VTEP of a group", strings.Replace(head, `192.0.2.1`, `239.0.0.1`, 1) + `}`, "segment.vtep: 239.0.0.1"},
		{"VTEP with a zone", strings.Replace(head, `192.0.2.1`, `fe80::1%eth1`, 1) + `}`, "segment.vtep"},
		{"unknown key", head + `,"endpoint":[]}`, `did you mean "endpoints"?`},
		{"unknown key in an endpoint", head + `,"endpoints":[{` + mac + `,"addr":[]}]}`, `endpoints[0].addr`},
		{"no MAC", head + `,"endpoints":[{"addrs":["10.9.0.1"]}]}`, `segment.endpoints[0].mac`},
		{"MAC of a group", head + `,"endpoints":[{"mac":"01:00:5e:00:00:01"}]}`, `segment.endpoints[0].mac`},
		{"MAC of nobody", head + `,"endpoints":[{"mac":"00:00:00:00:00:00"}]}`, `segment.endpoints[0].mac`},
		{"second form of a MAC", head + `,"endpoints":[{"mac":"02-00-5E-00-53-01"}]}`, `one form`},
		{"EUI-64", head + `,"endpoints":[{"mac":"02:00:5e:00:53:01:02:03"}]}`, `segment.endpoints[0].mac`},
		{"MAC twice", head + `,"endpoints":[{` + mac + `},{` + mac + `}]}`, `segment.endpoints[1].mac: 02:00:5e:00:53:01 comes twice`},
		{"address of a group", head + `,"endpoints":[{` + mac + `,"addrs":["10.9.0.1","ff02::1"]}]}`, `segment.endpoints[0].addrs[1]`},
		{"no address", head + `,"endpoints":[{` + mac + `,"addrs":["0.0.0.0"]}]}`, `segment.endpoints[0].addrs[0]`},
		{"IPv4 in IPv6", head + `,"endpoints":[{` + mac + `,"addrs":["::ffff:10.9.0.1"]}]}`, `segment.endpoints[0].addrs[0]`},
		{"newer", `{"version":2,"vni":7,"zone":"b"}`, record.ErrNewer.Error()},
		{"cut off", head, "JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := record.DecodeSegment([]byte(tt.value)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestSegmentKey(t *testing.T) {
	t.Parallel()
	key := record.SegmentKey(5001, n1)
	if vni, node, ok := record.ParseSegmentKey(key); !ok || vni != 5001 || node != n1 {
		t.Errorf("%s: %d, %s, %v", key, vni, node, ok)
	}
	if strings.HasPrefix(key, record.Prefix) || !strings.HasPrefix(key, record.SegmentKeys(5001)) || strings.HasPrefix(key, record.SegmentKeys(500)) {
		t.Errorf("%s is in another folder", key)
	}
	member := record.MemberKey(n1, 5001)
	if node, vni, ok := record.ParseMemberKey(member); !ok || vni != 5001 || node != n1 || !strings.HasPrefix(member, record.MemberKeys(n1)) {
		t.Errorf("%s: %d, %s, %v", member, vni, node, ok)
	}
	for _, key := range []string{"", record.MemberFolder, record.MemberFolder + n1, record.MemberFolder + n1 + "/", record.MemberFolder + n1 + "/07", n1 + "/7", record.MemberFolder + "n1/7"} {
		if node, vni, ok := record.ParseMemberKey(key); ok {
			t.Errorf("%q is of %d and %s", key, vni, node)
		}
	}
	for _, key := range []string{
		"", record.SegmentFolder, record.SegmentFolder + "7", record.SegmentFolder + "7/n1", record.SegmentFolder + "07/" + n1, record.SegmentFolder + "0/" + n1,
		record.SegmentFolder + "16777216/" + n1, record.SegmentFolder + "+7/" + n1, "7/" + n1, record.SegmentFolder + "7/" + n1 + "/x",
	} {
		if vni, node, ok := record.ParseSegmentKey(key); ok {
			t.Errorf("%q is of %d and %s", key, vni, node)
		}
	}
}
