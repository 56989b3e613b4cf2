package e2e_test

import (
	"testing"
)

// Containers of one host reach each other, the host, and are reached by it.
func TestHostgwOneHost(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]keys{"routed": nil, "bridge": {"bridge": "ul0"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newBed(t).h1
			before := hostLinks(t, h)
			conf := pods(t, h, more)
			c1, c2 := attach(t, h, "c1", conf), attach(t, h, "c2", conf)
			meet(t, c1.station, c2.station)
			meet(t, c1.station, hostStation(t, h))
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))
			c1.del()
			meet(t, c2.station, hostStation(t, h))
			c2.del()
			wantNothing(t, h, before, c1.Namespace, c2.Namespace)
		})
	}
}
