package e2e_test

import (
	"fmt"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// Host and containers meet in every mode, also where the host is strict about
// the ways that packets come, if the parent is not, and everyone else meets as
// without hostAccess. It goes with the last of those who have it.
func TestIpvlanHostAccess(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := newIpvlanBed(t, mode)
			rpFilter(t, b.h1, "all", 1)
			far := attach(t, b.h1, "far", ipvlan(t, b.h1, mode, "bridge", nil)).station
			c3 := attach(t, b.h2, "c3", ipvlan(t, b.h2, mode, "bridge", keys{"hostAccess": true})).station
			none := remainsOf(t, b.h1)
			conf := ipvlan(t, b.h1, mode, "bridge", keys{"hostAccess": true})
			if mode == "l2" {
				n, rt := container(t, b.h1, "c0")
				_, err := b.h1.CNI(ours).Add(t.Context(), conf, rt)
				wantError(t, err, codeParent, "hostAccess", `"eth1"`, "sysctl net.ipv4.conf.eth1.rp_filter=2")
				wantUndone(t, none, remainsOf(t, b.h1))
				wantNoLink(t, n)
				rpFilter(t, b.h1, lab.Parent, 2)
			}
			c1 := attach(t, b.h1, "c1", conf)
			one := remainsOf(t, b.h1)
			c2 := attach(t, b.h1, "c2", conf)
			h1, h2 := hostStation(t, b.h1), hostStation(t, b.h2)

			meet(t, h1, c1.station)
			meet(t, h1, c2.station)
			meet(t, c1.station, h2)
			reaches(t, c1.station, c2.station)
			reaches(t, c1.station, far)
			reaches(t, c1.station, c3)
			reaches(t, h1, c3)
			reaches(t, h2, c3)
			reaches(t, far, h2)
			quiet(t, both(h1, far)...) // who does not ask for it does not get it
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))

			link := mustLink(t, b.h1.Namespace, sibling)
			if link.Kind != "ipvlan" || !link.Up || len(link.Addrs) != 0 {
				t.Errorf("%s is %s, is up: %v, has addresses %v; want ipvlan, up and none", sibling, link.Kind, link.Up, link.Addrs)
			}

			c2.del()
			wantUndone(t, one, remainsOf(t, b.h1))
			meet(t, h1, c1.station)
			c1.del()
			wantUndone(t, none, remainsOf(t, b.h1))
			reaches(t, far, h2)
		})
	}
}

func rpFilter(t *testing.T, h *lab.Host, ifName string, value int) {
	t.Helper()
	mustDo(t, h.Namespace, "sysctl", "-qw", fmt.Sprintf("net.ipv4.conf.%s.rp_filter=%d", ifName, value))
}

// What the kernel drops with an address of the host is made anew by the next
// ADD, and what the dead have left goes with a GC.
func TestIpvlanHostAccessMends(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	for _, mode := range []string{"l2", "l3"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := newIpvlanBed(t, mode)
			conf := keys{"hostAccess": true}
			none := remainsOf(t, b.h1)
			c1 := attach(t, b.h1, "c1", ipvlan(t, b.h1, mode, "bridge", conf))
			h1 := hostStation(t, b.h1)
			mustDo(t, b.h1.Namespace, "ip", "route", "flush", "dev", sibling)
			silent(t, h1, station{Namespace: c1.Namespace, addrs: c1.addrs[:1]})
			c2 := attach(t, b.h1, "c2", ipvlan(t, b.h1, mode, "bridge", conf))
			meet(t, h1, c1.station)
			meet(t, h1, c2.station)

			gc := func(valid ...types.GCAttachment) {
				t.Helper()
				more := keys{"hostAccess": true, "dataDir": b.h1.DataDir, "runDir": b.h1.RunDir, "cni.dev/valid-attachments": append([]types.GCAttachment{}, valid...)}
				_, err := call{verb: "GC", plugin: "ipvlan"}.run(t, b.h1, ipvlan(t, b.h1, mode, "bridge", more))
				wantOK(t, "GC", err)
			}
			before := mustDo(t, b.h1.Namespace, "ip", "route", "show", "dev", sibling)
			mustDo(t, b.h1.Namespace, "ip", "netns", "delete", c2.ID)
			gc(types.GCAttachment{ContainerID: c1.ID, IfName: "eth0"})
			if after := mustDo(t, b.h1.Namespace, "ip", "route", "show", "dev", sibling); after == before {
				t.Errorf("GC left all routes: %s", after)
			}
			meet(t, h1, c1.station)
			mustDo(t, b.h1.Namespace, "ip", "netns", "delete", c1.ID)
			gc()
			after := remainsOf(t, b.h1)
			after.Routes, none.Routes = nil, nil // the flush has taken some for good
			wantUndone(t, none, after)
		})
	}
}
