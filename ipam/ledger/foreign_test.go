package ledger

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestForeign copies a ledger to another machine, which has not used one since
// its boot.
func TestForeign(t *testing.T) {
	t.Parallel()
	o := testOptions(t, nil)
	o.MachineID = "here"
	if err := tryAdd(o, crashPool, "a"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(o.DataDir, dbName))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		machine string
		want    error
	}{{"there", ErrLost}, {"here", nil}}
	for _, tt := range tests {
		other := testOptions(t, nil)
		other.MachineID, other.BootID = tt.machine, "another boot"
		if err := errors.Join(os.MkdirAll(other.DataDir, 0o700), os.WriteFile(filepath.Join(other.DataDir, dbName), b, 0o600)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time it has been open in this boot
			if err := tryAdd(other, crashPool, "b"); !errors.Is(err, tt.want) {
				t.Errorf("on machine %q: %v, want %v", tt.machine, err, tt.want)
			}
		}
		if err := tryDel(other, "a"); err != nil {
			t.Errorf("on machine %q: a release: %v", tt.machine, err)
		}
	}
}
