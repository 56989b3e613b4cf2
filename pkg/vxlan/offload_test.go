package vxlan

import (
	"testing"

	"github.com/safchain/ethtool"
)

func TestWrongChecksums(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]bool{
		"4.19.0-27-amd64": true, "5.4.0-42-generic": true, "5.6.19": true, "5.6-rc1": true, "3.10.0-1160.el7.x86_64": true,
		"5.7.0": false, "5.10.0-33-amd64": false, "6.1.0": false, "6.18.44-fc-v782": false, "10.2": false, "": false, "odd": false, "5": false,
	} {
		if got := wrongChecksums(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}

// TestEarlyChecksums: the kernel takes the offload away.
func TestEarlyChecksums(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	if _, err := device().Apply(n); err != nil {
		t.Fatal(err)
	}
	on := func() (on bool) {
		t.Helper()
		err := n.Do(func() error {
			e, err := ethtool.NewEthtool()
			if err != nil {
				return err
			}
			defer e.Close()
			all, err := e.Features("vx7")
			on = all[checksums]
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	if !on() {
		t.Fatalf("this kernel leaves %s off by itself", checksums)
	}
	for range 2 {
		if err := n.Do(func() error { return earlyChecksums("vx7") }); err != nil || on() {
			t.Errorf("%v, on: %v", err, on())
		}
	}
}
