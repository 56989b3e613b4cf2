// Package leaves has a test that passes and a process that fails.
package leaves

import (
	"fmt"
	"os"
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestMain(m *testing.M) {
	m.Run()
	fmt.Fprintln(os.Stderr, "something is left behind")
	os.Exit(3)
}

func TestPasses(t *testing.T) { linktest.Need(t) }
