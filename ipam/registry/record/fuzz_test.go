package record_test

import (
	"bytes"
	"testing"

	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// again checks that what was decoded is written in a form that is decoded to
// the same: value -> object -> form -> object -> the same form.
func again[T any](t *testing.T, value []byte, decode func([]byte) (T, error), encode func(T) []byte) {
	object, err := decode(value)
	if err != nil {
		return
	}
	form := encode(object)
	back, err := decode(form)
	if err != nil {
		t.Fatalf("%s decodes, but not its form %s: %v", value, form, err)
	}
	if second := encode(back); !bytes.Equal(form, second) {
		t.Fatalf("%s\nhas the form %s\nand then %s", value, form, second)
	}
}

func FuzzBlock(f *testing.F) {
	f.Add([]byte(`{"version":1,"cidr":"10.0.0.0/30"}`))
	f.Add([]byte(`{"version":1,"cidr":"10.5.0.0/29","owner":"` + n1 + `","given":{"10.5.0.1":{"node":"` + n2 + `","key":"ns/web-0"},"10.5.0.2":{"key":"k","since":"2026-01-02T03:04:05Z"},"10.5.0.3":{}}}`))
	f.Add([]byte(`{"version":1,"cidr":"2001:db8::/122","given":{"2001:db8::1":{"key":"\u0000"}}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		b, err := record.DecodeBlock(value)
		if err != nil {
			return
		}
		form, err := record.EncodeBlock(b)
		if err != nil {
			t.Fatalf("%s decodes, but has no form: %v", value, err)
		}
		back, err := record.DecodeBlock(form)
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		if second, err := record.EncodeBlock(back); err != nil || !bytes.Equal(form, second) {
			t.Fatalf("%s, then %s, %v", form, second, err)
		}
	})
}

func FuzzPool(f *testing.F) {
	f.Add([]byte(`{"version":1,"name":"pods","uuid":"` + uuid + `","tenant":"","kind":"routed","ranges":[[{"subnet":"10.5.0.0/16"}]],"blockPrefix":{"ipv4":26,"ipv6":122},"expectedNodes":64,"sticky":false,"stickyFor":"24h"}`))
	f.Add([]byte(`{"version":1,"name":"a","uuid":"` + uuid + `","kind":"shared","ranges":[[{"subnet":"10.5.0.0/24","exclude":["10.5.0.9"]}],[{"subnet":"2001:db8::/64"}]],"routes":[{"dst":"0.0.0.0/0"}],"sticky":"strict","state":"deleting"}`))
	f.Fuzz(func(t *testing.T, value []byte) { again(t, value, record.DecodePool, record.EncodePool) })
}

// FuzzObjects runs each value through all the other codecs.
func FuzzObjects(f *testing.F) {
	for _, seed := range []string{
		`{"version":1,"name":"pods","tenant":"","pool":"pods","backend":"vxlan","vni":1,"port":8472,"directRouting":true}`,
		`{"version":1,"name":"red","quota":100}`,
		`{"version":1,"name":"red","quota":0,"vnis":{"first":5000,"last":5999}}`,
		`{"version":1,"vni":5001,"tenant":"red","name":"lan","token":"` + uuid + `","state":"settled"}`,
		`{"version":1,"node":"` + n1 + `","name":"n1","addresses":["192.0.2.1","2001:db8::1"],"asserted":1}`,
		`{"version":1,"node":"` + n1 + `","name":"n1","rest":60000000000,"at":"2026-01-02T03:04:05Z"}`,
		`{"version":1,"node":"` + n1 + `","machine":"m","boot":"b","device":1,"inode":2}`,
		`{"version":1,"node":"` + n1 + `","pool":"` + uuid + `","have":3}`,
		`{"version":1,"vni":5001,"node":"` + n1 + `","name":"n1","vtep":"192.0.2.1","port":8472,"endpoints":[{"mac":"02:00:5e:00:53:01","addrs":["10.9.0.1","2001:db8:9::1"]},{"mac":"02:00:5e:00:53:02"}]}`,
		`{"version":1,"id":"` + uuid + `","epoch":{"number":1,"id":"` + uuid + `"},"frozen":{"node":"` + n1 + `","reason":"r","epoch":1,"rev":9}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		again(t, value, record.DecodeNetwork, record.EncodeNetwork)
		again(t, value, record.DecodeTenant, record.EncodeTenant)
		again(t, value, record.DecodeNode, record.EncodeNode)
		again(t, value, record.DecodeGone, record.EncodeGone)
		again(t, value, record.DecodeLive, record.EncodeLive)
		again(t, value, record.DecodeWant, record.EncodeWant)
		again(t, value, record.DecodeSegment, record.EncodeSegment)
		again(t, value, record.DecodeNumber, record.EncodeNumber)
		again(t, value, record.DecodeCluster, record.EncodeCluster)
	})
}
