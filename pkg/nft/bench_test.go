package nft

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
)

// cluster is what 5,000 nodes ask for: an address each, which is a VTEP too,
// and a handful of pools.
func cluster() Ruleset {
	r := Ruleset{Forward: prefixes("10.64.0.0/10 2001:db8:5::/48"), Masquerade: prefixes("10.64.0.0/26"), Ports: []uint16{8472}}
	for i := range 5000 {
		a := [4]byte{172, 16}
		binary.BigEndian.PutUint16(a[2:], uint16(i+1))
		r.Nodes = append(r.Nodes, netip.AddrFrom4(a))
	}
	r.VTEPs = r.Nodes
	return r
}

func BenchmarkCold(b *testing.B) {
	want := cluster()
	r := newSpace(b).reconciler(b, Config{})
	for b.Loop() {
		b.StopTimer()
		must(b, r.Apply(context.Background(), Ruleset{}))
		b.StartTimer()
		must(b, r.Apply(context.Background(), want))
	}
}

func BenchmarkOneChange(b *testing.B) {
	want := cluster()
	r := newSpace(b).reconciler(b, Config{})
	must(b, r.Apply(context.Background(), want))
	for i := 0; b.Loop(); i++ {
		want.VTEPs = want.Nodes[:4000+i%2]
		must(b, r.Apply(context.Background(), want))
	}
}
