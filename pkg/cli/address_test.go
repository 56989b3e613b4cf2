package cli

import (
	"testing"
	"time"
)

func TestParseAt(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("east", 2*3600)
	now := time.Date(2026, 1, 2, 10, 30, 0, 0, zone)
	for s, want := range map[string]time.Time{
		"10:30":                time.Date(2026, 1, 2, 10, 30, 0, 0, zone),
		"10:31":                time.Date(2026, 1, 1, 10, 31, 0, 0, zone),
		"10:29:59":             time.Date(2026, 1, 2, 10, 29, 59, 0, zone),
		"2026-01-01 23:00":     time.Date(2026, 1, 1, 23, 0, 0, 0, zone),
		"2026-01-01 23:00:01":  time.Date(2026, 1, 1, 23, 0, 1, 0, zone),
		"2026-01-01T21:00:00Z": time.Date(2026, 1, 1, 23, 0, 0, 0, zone),
	} {
		if got, err := parseAt(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %s, %v, want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "25:00", "2pm", "2026-01-01"} {
		if got, err := parseAt(s, now); err == nil {
			t.Errorf("%q: %s", s, got)
		}
	}
}
