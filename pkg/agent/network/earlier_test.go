package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/agent/runfile"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/route"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// TestEarlier: what an agent of this boot has set is there for the next one,
// which need not reach the registry for it.
func TestEarlier(t *testing.T) {
	t.Parallel()
	away := errors.New("the registry is out of reach")
	plain, masqueraded := ipam.Uses{Network: "pods"}, ipam.Uses{Network: "pods", Masquerade: true}
	for _, tt := range []struct {
		name   string
		before ipam.Uses
		spoil  func(file string) error
		// ok are plain and masqueraded after it.
		ok [2]bool
	}{
		{"routes", plain, nil, [2]bool{true, false}},
		{"masquerading too", masqueraded, nil, [2]bool{true, true}},
		{"a reboot", masqueraded, func(file string) error {
			return os.WriteFile(file, []byte(`{"boot":"another","value":{"pods":true}}`), 0o600)
		}, [2]bool{}},
		{"a file that is cut off", masqueraded, func(file string) error { return os.Truncate(file, 5) }, [2]bool{}},
		{"nothing", masqueraded, os.Remove, [2]bool{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			keep := func(c *Config) { c.RunDir = dir }
			t.Run("first", func(t *testing.T) {
				d := newDesk(t, keep, peer(5)...)
				d.run(t)
				must(t, d.Await(t.Context(), tt.before))
			})
			if tt.spoil != nil {
				must(t, tt.spoil(filepath.Join(dir, syncedFile)))
			}
			d := newDesk(t, keep)
			d.cluster.away = away
			d.run(t)
			for i, u := range []ipam.Uses{plain, masqueraded} {
				if err := d.Await(t.Context(), u); (err == nil) != tt.ok[i] {
					t.Errorf("%+v: %v, want it to be ok: %t", u, err, tt.ok[i])
				}
			}
		})
	}
}

// TestPartial: what an earlier agent has set stays while a record cannot be read
// that this one has never known, and what else is wanted comes.
func TestPartial(t *testing.T) {
	t.Parallel()
	odd := registry.Item{Key: record.NetworkFolder + "far", Value: []byte("{"), Rev: 6}
	dir := t.TempDir()
	must(t, runfile.Write(filepath.Join(dir, syncedFile), earlier{"far": true}))
	d := newDesk(t, func(c *Config) { c.RunDir = dir }, append(peer(5), odd)...)
	old := route.Route{Dst: netip.MustParsePrefix("10.9.9.0/26"), Via: netip.MustParseAddr("192.0.0.77"), Dev: "eth1"}
	must(t, d.routes.Put(old, true))
	must(t, d.overlays.Apply(t.Context(), []plan.Overlay{{Device: vxlan.Device{Network: "far", VNI: 7}, Entries: make([]neigh.Want, 1)}}))
	d.run(t)
	<-d.Ready()
	const fresh = "10.0.1.64/26 via 192.1.0.5 dev eth1\n"
	await(t, "routes", fresh+old.String()+"\n", d.routes.String)
	devices := func() string { return fmt.Sprint(len(d.overlays.Status(7))) }
	if devices() != "1" || d.rules.String() != "" {
		t.Errorf("devices %s, rules\n%s", devices(), d.rules)
	}
	masqueraded := ipam.Uses{Network: "pods", Masquerade: true}
	if err := d.Await(t.Context(), masqueraded); err == nil || !strings.Contains(err.Error(), "waits for a record that cannot be read") || d.rules.String() != "" {
		t.Errorf("masqueraded: %v, rules\n%s", err, d.rules)
	}
	d.cluster.set(nil, registry.Item{Key: odd.Key, Rev: 10})
	await(t, "when there is no such network", fresh, d.routes.String)
	await(t, "devices", "0", devices)
	must(t, d.Await(t.Context(), masqueraded))
	if !strings.Contains(d.rules.String(), "masquerade4 { 10.0.0.0/8 }") {
		t.Errorf("rules\n%s", d.rules)
	}
}

// TestPartialElsewhere: rules do not wait for a record of something else, though a
// network of before has been deleted.
func TestPartialElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, runfile.Write(filepath.Join(dir, syncedFile), earlier{"deleted": true}))
	node := registry.Item{Key: record.NodeFolder + "20000000-0000-4000-8000-000000000009", Value: []byte("{"), Rev: 6}
	d := newDesk(t, func(c *Config) { c.RunDir = dir }, append(peer(5), node)...)
	d.run(t)
	<-d.Ready()
	if err := d.Await(t.Context(), ipam.Uses{Network: "pods", Masquerade: true}); err != nil {
		t.Error(err)
	}
}
