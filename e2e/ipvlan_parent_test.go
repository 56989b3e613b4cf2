package e2e_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// Links of one parent have one mode and one flag, which the kernel would change
// for all of them with the last one made. ADD refuses that before it harms
// anyone, and says who has which; where nobody has one any more, or on another
// VLAN, it takes it.
func TestIpvlanOtherMode(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	tests := []struct{ name, mode, flag, otherMode, otherFlag string }{
		{"mode", "l2", "bridge", "l3", "bridge"},
		{"flag", "l3s", "private", "l3s", "vepa"},
		{"both", "l3", "vepa", "l2", "private"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newIpvlanBed(t, test.mode)
			conf, other := ipvlan(t, b.h1, test.mode, test.flag, nil), ipvlan(t, b.h1, test.otherMode, test.otherFlag, nil)
			h2 := hostStation(t, b.h2)
			c1 := attach(t, b.h1, "c1", conf)
			meet(t, c1.station, h2)
			intact := func() {
				t.Helper()
				shown := mustDo(t, c1.Namespace, "ip", "-d", "link", "show", "dev", "eth0")
				if !strings.Contains(shown, "mode "+test.mode+" "+test.flag) {
					t.Errorf("the first link has become %s", shown)
				}
				wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))
			}
			says := []string{"master", `"eth1"`, test.mode, test.flag, test.otherMode, test.otherFlag, c1.ID}
			denied(t, b.h1, "c2", other, codeParent, says...)
			denied(t, b.h1, "c3", ipvlan(t, b.h1, test.otherMode, test.otherFlag, keys{"name": "other", "ipam": hostLocal}), codeParent, says...)
			intact()
			meet(t, c1.station, h2)
			attach(t, b.h1, "c4", ipvlan(t, b.h1, test.otherMode, test.otherFlag, keys{"vlan": 100})).del()
			c5 := attach(t, b.h1, "c5", conf)
			intact()

			c1.del()
			denied(t, b.h1, "c6", other, codeParent, says[:len(says)-1]...)
			c5.del()
			c7 := attach(t, b.h1, "c7", other)
			denied(t, b.h1, "c8", conf, codeParent, c7.ID)

			// One that has died holds nobody up.
			mustDo(t, b.h1.Namespace, "ip", "netns", "delete", c7.ID)
			c9 := attach(t, b.h1, "c9", conf)
			c9.del()
			wantOK(t, "DEL", c7.cni.Del(t.Context(), c7.conf, c7.rt))
			wantNothingHeld(t, b.h1)
		})
	}
}

// The kernel gives the number of a namespace that has died to the next one: a
// container is not its own rival then. Other tests would take the number, so this
// one does not run beside them.
func TestIpvlanOtherModeInSuccessor(t *testing.T) {
	linktest.Need(t, "ipvlan")
	h := oneHost(t)
	dead := attach(t, h, "dead", ipvlan(t, h, "l2", "bridge", nil))
	number := inode(t, dead.Namespace)
	mustDo(t, h.Namespace, "ip", "netns", "delete", dead.ID)
	next := &attachment{t: t, cni: h.CNI(ours), conf: ipvlan(t, h, "l3", "bridge", nil)}
	tries := 0
	eventually(t, "a namespace has the number", func() bool {
		tries++
		next.Namespace, next.rt = container(t, h, fmt.Sprintf("c%d", tries))
		return inode(t, next.Namespace) == number
	})
	next.add()
	wantOK(t, "CHECK", next.cni.Check(t.Context(), next.conf, next.rt))
	wantOK(t, "DEL of the dead", dead.cni.Del(t.Context(), dead.conf, dead.rt))
	wantOK(t, "CHECK", next.cni.Check(t.Context(), next.conf, next.rt))
}

func inode(t *testing.T, n *lab.Namespace) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(n.Path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// A link that nobody has on record counts as much, wherever it is: on the host,
// or in some namespace with a name. So does one of the reference plugin.
func TestIpvlanOtherModeByHand(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	theirs := t.TempDir()
	if err := binaries.Reference(t.Context(), theirs, "./plugins/main/ipvlan"); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{"the host", "a namespace", "the reference plugin"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			n, rt := container(t, h, "foreign")
			at := n
			switch where {
			case "the host":
				at = h.Namespace
				ip(t, at, "link add link eth1 name foreign up type ipvlan mode l3 private")
			case "a namespace":
				ip(t, h.Namespace, "link add link eth1 name foreign type ipvlan mode l3 private", "link set foreign netns "+n.ID)
			default:
				rt.IfName = "foreign"
				conf := `{"cniVersion": "1.1.0", "name": "lan", "type": "ipvlan", "master": "eth1", "mode": "l3", "ipam": {"type": "host-local", "subnet": "198.51.100.0/24"}}`
				if _, err := h.CNI(theirs, reference).Add(t.Context(), conf, rt); err != nil {
					t.Fatal(err)
				}
			}
			before := mustDo(t, at, "ip", "-d", "link", "show", "dev", "foreign")
			says := []string{"master", `"eth1"`, "mode l3", `"foreign"`}
			if at == n {
				says = append(says, n.ID)
			}
			denied(t, h, "c1", ipvlan(t, h, "l2", "private", nil), codeParent, append(says, "mode l2")...)
			denied(t, h, "c2", ipvlan(t, h, "l3", "vepa", nil), codeParent, append(says, "vepa")...)
			denied(t, h, "c3", ipvlan(t, h, "l2", "bridge", keys{"ipam": keys{}}), codeParent, says...)
			if after := mustDo(t, at, "ip", "-d", "link", "show", "dev", "foreign"); after != before {
				t.Errorf("the foreign link was\n%s, and is\n%s", before, after)
			}
			attach(t, h, "c4", ipvlan(t, h, "l2", "bridge", keys{"vlan": 100})).del()

			mustDo(t, at, "ip", "link", "delete", "foreign")
			attach(t, h, "c5", ipvlan(t, h, "l2", "vepa", nil)).del()
		})
	}
}

// One that agrees is no trouble.
func TestIpvlanSameModeByHand(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	h := oneHost(t)
	n, _ := container(t, h, "foreign")
	ip(t, h.Namespace, "link add link eth1 name foreign type ipvlan mode l2 bridge", "link set foreign netns "+n.ID)
	ip(t, n, "link set foreign up", "addr add 192.0.2.99/24 dev foreign", "addr add 2001:db8::99/64 dev foreign nodad")
	c1 := attach(t, h, "c1", ipvlan(t, h, "l2", "bridge", nil))
	meet(t, c1.station, station{Namespace: n, addrs: stationAddrs("192.0.2.99", "2001:db8::99")})
}

// A parent takes children of one kind, and who is turned away is told which
// there are and where.
func TestIpvlanOrMacvlan(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	t.Parallel()
	for i, kind := range kinds {
		t.Run(kind+" is there", func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			other := kinds[1-i]
			c1 := attach(t, h, "c1", lan(t, h, keys{"type": kind}))
			denied(t, h, "c2", lan(t, h, keys{"type": other}), codeParent, "master", `"eth1"`, kind, "eth0", c1.ID)
			denied(t, h, "c3", lan(t, h, keys{"type": other, "ipam": hostLocal}), codeParent, "master", `"eth1"`, kind, c1.ID)
			wantOK(t, "CHECK", c1.cni.Check(t.Context(), c1.conf, c1.rt))
			attach(t, h, "c4", lan(t, h, keys{"type": other, "vlan": 100})).del()
			c1.del()
			attach(t, h, "c5", lan(t, h, keys{"type": other})).del()
			wantNothingHeld(t, h)
		})
	}
}

// Of several that come at once to an unused parent, those of one mode win, and
// nothing is left of the others.
func TestIpvlanModesAtOnce(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	h := oneHost(t)
	var as []*attachment
	for i, mode := range []string{"l2", "l3", "l3s", "l2", "l3"} {
		a := &attachment{t: t, cni: h.CNI(ours), conf: ipvlan(t, h, mode, "bridge", keys{"name": "n" + mode})}
		a.Namespace, a.rt = container(t, h, fmt.Sprintf("c%d", i))
		as = append(as, a)
	}
	none := remainsOf(t, h)
	for range 3 {
		errs := atOnce(as)
		modes := map[string]bool{}
		won := 0
		for i, a := range as {
			if errs[i] != nil {
				wantError(t, errs[i], codeParent, "master", `"eth1"`, "ipvlan mode l")
				wantNoLink(t, a.Namespace)
				continue
			}
			won++
			_, shown, _ := strings.Cut(mustDo(t, a.Namespace, "ip", "-d", "link", "show", "dev", "eth0"), "ipvlan  mode ")
			mode, _, _ := strings.Cut(shown, " ")
			modes[mode] = true
			wantOK(t, "CHECK of "+a.ID, a.cni.Check(t.Context(), a.conf, a.rt))
		}
		if len(modes) > 1 {
			t.Errorf("modes %v have won", modes)
		}
		if n := len(readBooks(t, h).Attachments); n != won {
			t.Errorf("%d attachments are on record, and %d have won", n, won)
		}
		for i, a := range as {
			if errs[i] == nil {
				a.del()
			}
		}
		wantUndone(t, none, remainsOf(t, h))
	}
}

// atOnce ADDs all.
func atOnce(as []*attachment) []error {
	errs := make([]error, len(as))
	var all sync.WaitGroup
	for i, a := range as {
		all.Go(func() { _, errs[i] = a.cni.Add(a.t.Context(), a.conf, a.rt) })
	}
	all.Wait()
	return errs
}

// Of one mode, all of those that come at once to an unused parent get in.
func TestIpvlanSameModeAtOnce(t *testing.T) {
	linktest.Need(t, "ipvlan")
	t.Parallel()
	for _, mode := range []string{"l2", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			conf := ipvlan(t, h, mode, "private", nil)
			as := make([]*attachment, 8)
			for i := range as {
				as[i] = &attachment{t: t, cni: h.CNI(ours), conf: conf}
				as[i].Namespace, as[i].rt = container(t, h, fmt.Sprintf("c%d", i))
			}
			for i, err := range atOnce(as) {
				wantOK(t, "ADD "+as[i].ID, err)
			}
			held := readBooks(t, h).held()
			for _, a := range as {
				wantOK(t, "CHECK", a.cni.Check(t.Context(), conf, a.rt))
				if len(held[a.ID]) != 2 {
					t.Errorf("%s holds %v", a.ID, held[a.ID])
				}
			}
		})
	}
}
