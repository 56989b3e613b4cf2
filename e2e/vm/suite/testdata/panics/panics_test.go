// Package panics has a test that panics, and takes the others with it.
package panics

import (
	"testing"

	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestBefore(t *testing.T) { linktest.Need(t) }

func TestPanics(t *testing.T) {
	linktest.Need(t)
	panic("at the disco")
}

func TestXAfter(t *testing.T) { linktest.Need(t) }
