package record_test

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tailscale/hujson"

	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestReference: the commented documents load, and have every key that a user
// may write.
func TestReference(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		file  string
		again func([]byte) ([]byte, error)
	}{
		{"cluster-pool.jsonc", func(text []byte) ([]byte, error) {
			p, err := record.LoadPool(text)
			return record.EncodePool(p), err
		}},
		{"cluster-network.jsonc", func(text []byte) ([]byte, error) {
			n, err := record.DecodeNetwork(text)
			return record.EncodeNetwork(n), err
		}},
	} {
		text, err := os.ReadFile("../../../conf/reference/" + tt.file)
		if err != nil {
			t.Fatal(err)
		}
		if text, err = hujson.Standardize(text); err != nil {
			t.Fatal(err)
		}
		form, err := tt.again(text)
		if err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		if diff := cmp.Diff(keys(t, form), keys(t, text)); diff != "" {
			t.Errorf("%s: keys (-known +there):\n%s", tt.file, diff)
		}
	}
}

func keys(t *testing.T, object []byte) []string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(object, &m); err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(m))
}
