// Package hangs has a test that never ends.
package hangs

import (
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestHangs(t *testing.T) {
	linktest.Need(t)
	t.Log("about to hang")
	select {}
}
