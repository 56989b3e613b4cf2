package crowd

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// TestCrowd: agents that start at the same moment all get an address, where
// there is plenty and where they have to ask each other.
func TestCrowd(t *testing.T) {
	tests := []struct {
		name, pool string
		agents     int
	}{
		{"plenty", `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/16"}]],"expectedNodes":1000}`, 100},
		// Nearly five times as many nodes as there are blocks.
		{"scarce", `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/23"}]],"blockPrefix":{"ipv4":29}}`, 300},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			// In memory: see the comment of the package.
			dir, err := os.MkdirTemp("/dev/shm", "underlay-crowd-")
			if errors.Is(err, os.ErrNotExist) {
				dir = t.TempDir()
			} else if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			server, err := Serve(ctx, t.TempDir())
			if err != nil {
				t.Fatalf("%v; apt-get install etcd-server", err)
			}
			defer server.Stop()
			if _, err := CreatePool(ctx, server.Endpoint, tt.pool); err != nil {
				t.Fatal(err)
			}
			c, err := New(ctx, server.Endpoint, dir, "a", tt.agents)
			if err != nil {
				t.Fatal(err)
			}
			before, err := server.Load()
			if err != nil {
				t.Fatal(err)
			}
			took, err := c.Start(ctx)
			if err != nil || len(took) != tt.agents {
				t.Errorf("%d of %d have an address: %v", len(took), tt.agents, err)
			}
			after, err := server.Load()
			if err != nil {
				t.Fatal(err)
			}
			// Each joins in some ten requests, leases or asks in some more, and
			// begins again where the machine is slow.
			each := after.Since(before).All() * after.At.Sub(before.At).Seconds() / float64(tt.agents)
			if limit := map[string]float64{"plenty": 100, "scarce": 200}[tt.name]; each > limit {
				t.Errorf("%.0f requests for each agent", each)
			}
			t.Logf("the last after %.1f s, %.0f requests each", took[len(took)-1].Seconds(), each)
			if err := c.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}
