package arp

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

// BenchmarkProber is what an attachment pays: on a macvlan with a sibling,
// where each answer is in the queue when Conflicts looks.
func BenchmarkProber(b *testing.B) {
	for _, bb := range []struct {
		name  string
		addrs []netip.Addr
	}{
		{"ipv4", addrs("192.0.2.10")},
		{"ipv6", addrs("2001:db8::10")},
		{"dual", addrs("192.0.2.10", "2001:db8::10")},
	} {
		b.Run(bb.name, func(b *testing.B) {
			here, there := siblings(b)
			here.up(b)
			there.up(b)
			there.assign(b, bb.addrs...)
			var spent [5]time.Duration
			seen := 0
			must(b, here.ns.Do(func(ns.NetNS) error {
				for b.Loop() {
					at := time.Now()
					step := func(i int) {
						now := time.Now()
						spent[i] += now.Sub(at)
						at = now
					}
					p, err := Open(here.ifc, bb.addrs)
					if err != nil {
						return err
					}
					step(0)
					err = p.Probe()
					step(1)
					found, err2 := p.Conflicts(0)
					step(2)
					err3 := p.Announce()
					step(3)
					err4 := p.Close()
					step(4)
					if err := errors.Join(err, err2, err3, err4); err != nil {
						return err
					}
					seen += len(found)
				}
				return nil
			}))
			b.ReportMetric(float64(seen)/float64(b.N), "conflicts")
			for i, unit := range []string{"open-µs", "probe-µs", "conflicts-µs", "announce-µs", "close-µs"} {
				b.ReportMetric(float64(spent[i].Microseconds())/float64(b.N), unit)
			}
		})
	}
}
