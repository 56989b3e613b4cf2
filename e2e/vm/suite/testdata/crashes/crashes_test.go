// Package crashes has a test that crashes the kernel, where that is a guest's.
package crashes

import (
	"bytes"
	"os"
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestCrashes(t *testing.T) {
	linktest.Need(t)
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !bytes.Contains(cpu, []byte("User Mode Linux")) {
		t.Fatalf("this is no guest: %v", err)
	}
	t.Log("about to crash")
	t.Error(os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0o200))
}
