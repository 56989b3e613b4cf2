package digest

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

// TestSum256 compares it with the standard library, over all paddings.
func TestSum256(t *testing.T) {
	t.Parallel()
	for n := range 300 {
		data := bytes.Repeat([]byte{byte(n), 0xa5}, n)[:n]
		if got, want := Sum256(data), sha256.Sum256(data); got != want {
			t.Errorf("%d bytes: %x, want %x", len(data), got, want)
		}
	}
}
