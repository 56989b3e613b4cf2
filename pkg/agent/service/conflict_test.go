package service

import (
	"testing"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// TestConflict: what a plugin has met on the wire is told of, and a release
// without is not.
func TestConflict(t *testing.T) {
	p := newPlace(t)
	s, _ := p.start()
	p.add("a")
	p.add("b")
	rec, _, _, err := p.c.Attachment(t.Context(), att("a"))
	if err != nil {
		t.Fatal(err)
	}
	const why = "02:00:00:00:00:01 answers for it"
	req := ipam.ReleaseRequest{Attachment: att("a"), Undo: true, Conflict: []ipam.Conflict{{Address: rec.Addresses[0], Reason: why}}}
	for _, r := range []ipam.ReleaseRequest{req, req, {Attachment: att("b")}} {
		if _, err := p.c.Release(t.Context(), r, nil); err != nil {
			t.Fatal(err)
		}
	}
	events, _ := s.conf.Events.Since(0)
	if len(events) != 1 {
		t.Fatalf("%d events: %+v", len(events), events)
	}
	e := events[0]
	e.Seq = 0
	want := api.Event{Time: e.Time, Kind: api.AddressConflict, Network: "lan", Container: "a", IfName: "eth0", Pool: "lan", Addr: rec.Addresses[0],
		Text: "an address is in use by somebody else, and goes into quarantine: " + why}
	if e != want {
		t.Errorf("%+v, want %+v", e, want)
	}
}
