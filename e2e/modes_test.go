package e2e_test

import (
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// Siblings meet inside the parent, everyone on the wire is near, and only the
// own host is out of reach: the kernel hands nothing from a parent to its
// children.
func TestMacvlanModesBridge(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	conf := keys{"mode": "bridge"}
	c1 := attach(t, b.h1, "c1", lan(t, b.h1, conf)).station
	c2 := attach(t, b.h1, "c2", lan(t, b.h1, conf)).station
	c3 := attach(t, b.h2, "c3", lan(t, b.h2, conf)).station
	h1, h2 := hostStation(t, b.h1), hostStation(t, b.h2)

	meet(t, c1, c2)
	meet(t, c1, c3)
	meet(t, c1, h2)
	meet(t, h1, c3)
	apart(t, c1, h1)
}

// Siblings never meet, not even where the switch sends their frames back. That
// it does is shown by siblings in vepa mode on the same parent.
func TestMacvlanModesPrivate(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	private, vepa := lan(t, b.h1, keys{"mode": "private"}), lan(t, b.h1, keys{"mode": "vepa"})
	c1 := attach(t, b.h1, "c1", private).station
	c2 := attach(t, b.h1, "c2", private).station
	v1 := attach(t, b.h1, "v1", vepa).station
	v2 := attach(t, b.h1, "v2", vepa).station
	h2 := hostStation(t, b.h2)

	apart(t, c1, c2)
	hairpin(t, b.h1, true)
	apart(t, c1, c2)
	meet(t, v1, v2)
	meet(t, c1, h2)
	meet(t, c2, h2)
}

// The switch decides: siblings, and a container and its own host, meet where it
// sends their frames back, and only there.
func TestMacvlanModesVEPA(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	conf := lan(t, b.h1, keys{"mode": "vepa"})
	c1 := attach(t, b.h1, "c1", conf).station
	c2 := attach(t, b.h1, "c2", conf).station
	h1, h2 := hostStation(t, b.h1), hostStation(t, b.h2)

	apart(t, c1, c2)
	apart(t, c1, h1)
	meet(t, c1, h2)
	hairpin(t, b.h1, true)
	meet(t, c1, c2)
	meet(t, c1, h1)
	meet(t, c1, h2)
	hairpin(t, b.h1, false)
	apart(t, c1, c2)
}

// The container is on the wire in the parent's place, with its MAC, and alone.
func TestMacvlanModesPassthru(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	passthru := lan(t, b.h1, keys{"mode": "passthru"})
	bridge := lan(t, b.h1, keys{"mode": "bridge"})
	c3 := attach(t, b.h2, "c3", lan(t, b.h2, keys{"mode": "bridge"})).station
	h1, h2 := hostStation(t, b.h1), hostStation(t, b.h2)
	meet(t, h1, h2)

	c1 := attach(t, b.h1, "c1", passthru)
	if c1.mac != h1.mac {
		t.Errorf("MAC of the container is %s, of the parent %s", c1.mac, h1.mac)
	}
	meet(t, c1.station, h2)
	meet(t, c1.station, c3)
	silent(t, h1, h2)

	// On a parent that has one, no second child, whatever its mode.
	refused(t, b.h1, "c2", passthru)
	refused(t, b.h1, "c4", bridge)
	reaches(t, c1.station, h2)

	c1.del()
	if mac := mustLink(t, b.h1.Namespace, lab.Parent).MAC; mac != h1.mac {
		t.Errorf("MAC of the parent is %s after DEL, was %s", mac, h1.mac)
	}
	meet(t, h1, h2)

	// And none on a parent that has children of another mode.
	c5 := attach(t, b.h1, "c5", bridge)
	refused(t, b.h1, "c6", passthru)
	reaches(t, c5.station, h2)
	c5.del()
	c1.add()
	reaches(t, c1.station, h2)
}

// refused: ADD fails with an error that says where and why, and leaves nothing.
func refused(t *testing.T, h *lab.Host, name, conf string) {
	t.Helper()
	n, rt := container(t, h, name)
	_, err := h.CNI(ours).Add(t.Context(), conf, rt)
	if err == nil {
		t.Fatalf("ADD %s: no error", n.ID)
	}
	for _, want := range []string{lab.Parent, "passthru"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("ADD %s: error %q does not name %q", n.ID, err, want)
		}
	}
	wantNoLink(t, n)
}

// Only frames from listed MACs get in.
func TestMacvlanModesSource(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	source := func(macs []string) string {
		return lan(t, b.h1, keys{"mode": "source", "sourceMACs": macs})
	}
	c3 := attach(t, b.h2, "c3", lan(t, b.h2, keys{"mode": "bridge"})).station
	h2 := hostStation(t, b.h2)

	t.Run("listed in, unlisted out", func(t *testing.T) {
		t.Parallel()
		c1 := attach(t, b.h1, "c1", source([]string{h2.mac}))
		meet(t, c1.station, h2)
		apart(t, c1.station, c3)
		c1.again(source([]string{h2.mac, c3.mac}))
		meet(t, c1.station, h2)
		meet(t, c1.station, c3)
	})
	t.Run("nothing listed", func(t *testing.T) {
		t.Parallel()
		empty := attach(t, b.h1, "empty", source([]string{}))
		absent := attach(t, b.h1, "absent", lan(t, b.h1, keys{"mode": "source"}))
		for _, c := range []*attachment{empty, absent} {
			apart(t, c.station, h2)
			c.again(source([]string{h2.mac}))
			meet(t, c.station, h2)
		}
	})
}

// Siblings do not meet inside the parent, though each lists the other. What the
// switch sends back comes from the wire: there the lists alone decide.
func TestMacvlanModesSourceSiblings(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h2 := hostStation(t, b.h2)
	const mac1, mac2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
	conf := lan(t, b.h1, keys{"mode": "source", "sourceMACs": []string{h2.mac, mac1, mac2}})
	c1 := attach(t, b.h1, "c1", conf, [2]string{"MAC", mac1}).station
	c2 := attach(t, b.h1, "c2", conf, [2]string{"MAC", mac2}).station
	if c1.mac != mac1 || c2.mac != mac2 {
		t.Fatalf("MACs are %s and %s, want %s and %s", c1.mac, c2.mac, mac1, mac2)
	}

	meet(t, c1, h2)
	meet(t, c2, h2)
	apart(t, c1, c2)
	hairpin(t, b.h1, true)
	meet(t, c1, c2)
}

// hairpin says whether the host's switch port is reflective.
func hairpin(t *testing.T, h *lab.Host, on bool) {
	t.Helper()
	if err := h.Hairpin(t.Context(), on); err != nil {
		t.Fatal(err)
	}
}
