package neigh

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func sorted(lines string) string {
	split := slices.Collect(strings.Lines(lines))
	slices.Sort(split)
	return strings.Join(split, "")
}

// The Fake is worth what it has in common with the kernel: the same things
// happen to both, in random order, and both refuse, lose and keep the same.
func TestFakeIsLikeTheKernel(t *testing.T) {
	t.Parallel()
	top := t
	one := rapid.Custom(func(t *rapid.T) Entry {
		pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
		dev := pick("dev", "vx1", "vx1", "vx2", "vx6", "br2", "vx9")
		mac := pick("mac", "02:00:00:00:00:01", "02:00:00:00:00:02")
		switch pick("kind", "neighbour", "self", "self", "flood", "master") {
		case "neighbour":
			return parseEntry(top, fmt.Sprintf("%s dev %s lladdr %s", pick("addr", "10.0.0.1", "10.0.0.2", "2001:db8:1::1"), dev, mac))
		case "master":
			return parseEntry(top, fmt.Sprintf("master %s dev %s", mac, dev))
		case "flood":
			mac = "00:00:00:00:00:00"
		}
		if dev == "br2" {
			dev = "vx1" // a bridge takes it for one of its own
		}
		return parseEntry(top, fmt.Sprintf("self %s dev %s dst %s", mac, dev, pick("vtep", "192.0.2.11", "192.0.2.12", "2001:db8::11")))
	})
	h, f := newHost(t), newFake()
	real := h.reconciler(t, Config{MaxRetry: 1}) // at once
	fake, err := New(Config{Kernel: f, MaxRetry: 1})
	must(t, err)
	ours, err := openTable(h.ns, devices)
	must(t, err)
	t.Cleanup(func() { must(t, ours.Close()) })
	rapid.Check(t, func(rt *rapid.T) {
		must(t, real.Apply(context.Background(), nil)) // what the last one left
		must(t, fake.Apply(context.Background(), nil))
		// The kernel takes its time for those.
		rarely := func(t *rapid.T) bool { return rapid.IntRange(0, 4).Draw(t, "rarely") == 0 }
		var want []Want
		apply := func(t *rapid.T) {
			said := func(r *Reconciler) string {
				_ = r.Apply(context.Background(), want)
				var failed []string
				for _, s := range r.Status() {
					if s.Err != nil {
						failed = append(failed, s.Object.String())
					}
				}
				return strings.Join(failed, "\n")
			}
			if real, fake := said(real), said(fake); real != fake {
				t.Fatalf("refused by the kernel:\n%s\nby the fake:\n%s", real, fake)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"apply": func(t *rapid.T) {
				want = nil
				for i, e := range rapid.SliceOfNDistinct(one, 0, 8, Entry.Key).Draw(t, "want") {
					want = append(want, Want{Peer: fmt.Sprint(i), Object: e})
				}
				apply(t)
			},
			"apply again": apply,
			"flap": func(t *rapid.T) {
				dev := rapid.SampledFrom([]string{"vx1", "vx2", "vx6", "br2"}).Draw(t, "dev")
				h.ip(top, fmt.Sprintf("link set %s down\nlink set %s up", dev, dev))
				f.Down(dev)
			},
			"out of the bridge": func(t *rapid.T) {
				if !rarely(t) {
					return
				}
				h.ip(top, "link set vx2 nomaster\nlink set vx2 master br2")
				f.SetDevice("vx2", FakeDevice{VXLAN: true})
				f.SetDevice("vx2", FakeDevice{VXLAN: true, Port: true})
				f.Down("br2") // whose MAC is that of a port
			},
			"made anew": func(t *rapid.T) {
				if !rarely(t) {
					return
				}
				h.ip(top, "link del vx1\n"+makeVX1+"\nlink set vx1 up")
				f.DeleteDevice("vx1")
				f.SetDevice("vx1", FakeDevice{VXLAN: true})
			},
			"deleted": func(t *rapid.T) {
				there, err := ours.List(context.Background())
				must(top, err)
				if len(there) == 0 {
					return
				}
				e := rapid.SampledFrom(there).Draw(t, "entry")
				switch e.Kind {
				case Neighbour:
					h.ip(top, fmt.Sprintf("neigh del %s dev %s", e.Addr, e.Dev))
				case Self:
					h.bridge(top, fmt.Sprintf("fdb del %s dev %s dst %s self", e.MAC, e.Dev, e.Addr))
				case Master:
					h.bridge(top, fmt.Sprintf("fdb del %s dev %s master", e.MAC, e.Dev))
				}
				f.Delete(e)
			},
			"": func(t *rapid.T) {
				there, err := ours.List(context.Background())
				must(top, err)
				if real, fake := list(there), f.String(); real != fake {
					t.Fatalf("the kernel has\n%s\nthe fake has\n%s", real, fake)
				}
			},
		})
	})
}
