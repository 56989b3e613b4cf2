package lab

import (
	"crypto/rand"
	"strings"
	"testing"
)

// Test returns a lab for one test, under a name of its own, so that tests may
// run at once. It is removed when the test ends; the test fails if that leaves
// anything behind.
func Test(t testing.TB) *Lab {
	t.Helper()
	name := "t" + strings.ToLower(rand.Text()[:8])
	t.Cleanup(func() {
		if err := Remove(name); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	l, err := New(t.Context(), name)
	if err != nil {
		t.Fatalf("make a lab: %v", err)
	}
	return l
}
