package record

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
)

const (
	nodeA = "10000000-0000-4000-8000-000000000000"
	nodeB = "20000000-0000-4000-8000-000000000000"
)

// inFull is the decoding that the short way stands for.
func inFull[T any](t *testing.T, value []byte, full func([]byte) (T, error), form func([]byte) (T, bool)) bool {
	short, ok := form(value)
	if !ok {
		return false
	}
	want, err := full(value)
	if err != nil {
		t.Errorf("%s is taken, although: %v", value, err)
	} else if !reflect.DeepEqual(short, want) {
		t.Errorf("%s is %+v, taken for %+v", value, want, short)
	}
	return true
}

func fullNode(value []byte) (n Node, err error) {
	return n, decode(value, "node", &n.Version, &n)
}

// TestForms: the short way knows what encode writes.
func TestForms(t *testing.T) {
	t.Parallel()
	for _, n := range []Node{
		{Node: nodeA, Name: "n1"},
		{Node: nodeA, Machine: "m", Boot: "b", Folder: "1:2", Asserted: 12},
		{Node: nodeA, Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}},
	} {
		if !inFull(t, EncodeNode(n), fullNode, formOfNode) {
			t.Errorf("%s is not known", EncodeNode(n))
		}
	}
	for _, b := range []lease.Block{
		{CIDR: netip.MustParsePrefix("10.0.0.0/29")},
		{CIDR: netip.MustParsePrefix("10.0.0.0/29"), Owner: nodeA, Given: map[netip.Addr]lease.Entry{
			netip.MustParseAddr("10.0.0.1"): {}, netip.MustParseAddr("10.0.0.2"): {Node: nodeB}, netip.MustParseAddr("10.0.0.3"): {Key: "ns/a"},
			netip.MustParseAddr("10.0.0.4"): {Node: nodeB, Key: "ns/b"}}},
		{CIDR: netip.MustParsePrefix("2001:db8::/122"), Given: map[netip.Addr]lease.Entry{netip.MustParseAddr("2001:db8::1"): {Node: nodeB}}},
	} {
		value, err := EncodeBlock(b)
		if err != nil || !inFull(t, value, fullBlock, formOfBlock) {
			t.Errorf("%s is not known; %v", value, err)
		}
	}
}

// TestNoForm: what is another form, or none, is left to decode.
func TestNoForm(t *testing.T) {
	t.Parallel()
	parked, err := EncodeBlock(lease.Block{CIDR: netip.MustParsePrefix("10.0.0.0/29"), Given: map[netip.Addr]lease.Entry{netip.MustParseAddr("10.0.0.1"): {Key: "k", Since: time.Unix(1, 0)}}})
	if err != nil {
		t.Fatal(err)
	}
	node := string(EncodeNode(Node{Node: nodeA, Name: "n", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Asserted: 1}))
	for _, value := range []string{
		"", "{", string(parked), node + " ", strings.TrimSuffix(node, "}"),
		strings.Replace(node, `1}`, `01}`, 1), strings.Replace(node, `1}`, `}`, 1), strings.Replace(node, `1}`, `-1}`, 1), strings.Replace(node, `1}`, `99999999999999999999}`, 1),
		strings.Replace(node, `"n"`, `"\u006e"`, 1), strings.Replace(node, `"n"`, "\"\xff\"", 1), strings.Replace(node, `"n"`, "\"\n\"", 1), strings.Replace(node, `"n"`, `"n`, 1),
		strings.Replace(node, `"version":1`, `"version":2`, 1), strings.Replace(node, `,"asserted"`, `,"addresses":["192.0.2.2"],"asserted"`, 1),
		strings.Replace(node, `"192.0.2.1"`, `"192.0.2.1",`, 1), strings.Replace(node, `"192.0.2.1"`, ``, 1), strings.Replace(node, `192.0.2.1`, `2001:DB8::1`, 1),
		`{"version":1,"cidr":"10.0.0.0/29","owner":"x"}`,
		`{"version":1,"cidr":"10.0.0.1/29"}`, `{"version":1,"cidr":"2001:DB8::/122"}`,
		`{"version":1,"cidr":"10.0.0.0/29","given":{}}`,
		`{"version":1,"cidr":"10.0.0.0/29","given":{"10.0.0.1":{},"10.0.0.1":{}}}`,
		`{"version":1,"cidr":"10.0.0.0/29","given":{"10.0.0.1":{}"10.0.0.2":{}}}`,
		`{"version":1,"cidr":"10.0.0.0/29","given":{"10.0.1.1":{}}}`,
		`{"version":1,"cidr":"10.0.0.0/29","given":{"10.0.0.1":{"node":"""key":"k"}}}`,
	} {
		if n, ok := formOfNode([]byte(value)); ok {
			t.Errorf("%s is taken for %+v", value, n)
		}
		if b, ok := formOfBlock([]byte(value)); ok {
			t.Errorf("%s is taken for %+v", value, b)
		}
	}
}

// FuzzForm: what the short way takes means the same to decode.
func FuzzForm(f *testing.F) {
	f.Add([]byte(`{"version":1,"node":"` + nodeA + `","name":"n1","machine":"m","boot":"b","folder":"1:2","addresses":["192.0.2.1","2001:db8::1"],"asserted":1}`))
	f.Add([]byte(`{"version":1,"cidr":"10.5.0.0/29","owner":"` + nodeA + `","given":{"10.5.0.1":{"node":"` + nodeB + `","key":"ns/web-0"},"10.5.0.3":{}}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		inFull(t, value, fullNode, formOfNode)
		inFull(t, value, fullBlock, formOfBlock)
	})
}
