// Package exits has a test that ends its process in good order.
package exits

import (
	"os"
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestExits(t *testing.T) {
	linktest.Need(t)
	os.Exit(0)
}
