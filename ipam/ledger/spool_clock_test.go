package ledger

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/spool"
)

// A release that is spooled after the clock was set back is applied all the
// same, wherever the clock is by then.
func TestSpoolClockSetBack(t *testing.T) {
	t.Parallel()
	for _, drained := range []time.Duration{-2 * time.Hour, 0, time.Hour, 48 * time.Hour} {
		c := newClock()
		c.now = time.Now().Add(time.Hour).UTC()
		o := testOptions(t, c)
		l := open(t, o)
		add(t, l, request(pool("lan", set(t, "10.0.0.0/24")), "a"))
		shut(t, l)
		if err := Spool([]string{o.DataDir, o.RunDir}, ipam.ReleaseRequest{Attachment: att("a")}); err != nil {
			t.Fatal(err)
		}
		c.add(drained)
		l = open(t, o)
		if _, _, held, err := l.Attachment(att("a")); held || err != nil {
			t.Errorf("%s later it is held: %v, %v", drained, held, err)
		}
		add(t, l, request(pool("lan", set(t, "10.0.0.0/24")), "a"))
		shut(t, l)
		l = open(t, o)
		if _, _, held, err := l.Attachment(att("a")); !held || err != nil {
			t.Errorf("what came afterwards is held: %v, %v", held, err)
		}
	}
}

// What a rebuild has found alive is spared by a release of before.
func TestSpoolRebuilt(t *testing.T) {
	t.Parallel()
	c := newClock()
	o := testOptions(t, c)
	l := open(t, o)
	add(t, l, request(pool("lan", set(t, "10.0.0.0/24")), "a"))
	shut(t, l)
	if err := Spool([]string{o.DataDir, o.RunDir}, ipam.ReleaseRequest{Attachment: att("a")}); err != nil {
		t.Fatal(err)
	}
	c.now = time.Now().Add(time.Minute).UTC()
	found := []ipam.Address{{Prefix: netip.MustParsePrefix("10.0.0.1/24")}}
	if err := Rebuild(t.Context(), o, []Found{{Attachment: att("a"), Pool: "lan", Addresses: found}}); err != nil {
		t.Fatal(err)
	}
	wantStates(t, open(t, o), "10.0.0.1 held a")
	if left, err := os.ReadDir(filepath.Join(o.DataDir, spool.Folder)); err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}
