package e2e_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// DEL succeeds whatever is gone by then, and leaves no link and no address.
func TestDel(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// spoil is what happens between ADD and DEL. It may change what DEL says.
		spoil func(t *testing.T, h *lab.Host, a *attachment)
		// gone: the container's namespace does not outlive spoil.
		gone bool
	}{
		{name: "no netns", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.rt.NetNS = ""
		}},
		{name: "netns gone", gone: true, spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, h.Namespace, "ip", "netns", "delete", a.ID)
		}},
		{name: "netns gone and not told", gone: true, spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, h.Namespace, "ip", "netns", "delete", a.ID)
			a.rt.NetNS = ""
		}},
		{name: "netns below a file", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.rt.NetNS = "/etc/hostname/netns"
		}},
		{name: "CNI_ARGS that ADD would refuse", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.rt.Args = [][2]string{{"WHAT", "ever"}}
		}},
		{name: "netns is a file", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.rt.NetNS = filepath.Join(t.TempDir(), "netns")
			if err := os.WriteFile(a.rt.NetNS, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "parent gone", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, h.Namespace, "ip", "link", "delete", lab.Parent)
		}},
		{name: "parent down", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, h.Namespace, "ip", "link", "set", lab.Parent, "down")
		}},
		{name: "link gone", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			mustDo(t, a.Namespace, "ip", "link", "delete", "eth0")
		}},
		{name: "no prevResult", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.conf = lan(t, h, keys{"prevResult": nil})
			a.forget(h)
		}},
		{name: "empty prevResult", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.conf = lan(t, h, keys{"prevResult": keys{}})
			a.forget(h)
		}},
		{name: "ipam invalid by now", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.conf = lan(t, h, keys{"ipam": keys{"type": "underlay", "subnet": "192.0.2.0/24", "gateway": "198.51.100.1", "subnets": 1}})
		}},
		{name: "ipam without ranges by now", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.conf = lan(t, h, keys{"ipam": keys{"type": "underlay"}})
		}},
		{name: "another pool by now", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.conf = lan(t, h, keys{"ipam": keys{"type": "underlay", "subnet": "198.51.100.0/24"}})
		}},
		{name: "mode and mtu invalid by now", spoil: func(t *testing.T, h *lab.Host, a *attachment) {
			a.conf = lan(t, h, keys{"mode": "brigde", "mtu": 99999, "sourceMACs": []string{"x"}})
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			a := attach(t, h, "c1", lan(t, h, nil))
			if n := len(readBooks(t, h).held()[a.ID]); n != 2 {
				t.Fatalf("the ledger has %d addresses after ADD, want 2", n)
			}
			test.spoil(t, h, a)
			for _, nth := range []string{"first", "second"} {
				wantOK(t, nth+" DEL", a.cni.Del(t.Context(), a.conf, a.rt))
				if !test.gone {
					wantNoLink(t, a.Namespace)
				}
				wantNothingHeld(t, h)
			}
		})
	}
}

// forget removes what libcni remembers of the ADD.
func (a *attachment) forget(h *lab.Host) {
	a.t.Helper()
	cache := filepath.Join(filepath.Dir(h.DataDir), "cache")
	if _, err := os.Stat(cache); err != nil {
		a.t.Fatal(err)
	}
	if err := os.RemoveAll(cache); err != nil {
		a.t.Fatal(err)
	}
}

func TestDelBeforeAdd(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	n, rt := container(t, h, "c1")
	before := stateOf(t, h, n)
	for _, netns := range []string{rt.NetNS, "", filepath.Join(t.TempDir(), "gone")} {
		rt.NetNS = netns
		wantOK(t, "DEL with netns "+netns, h.CNI(ours).Del(t.Context(), lan(t, h, nil), rt))
	}
	wantState(t, before, stateOf(t, h, n))
}

// A runtime may use the path of a dead container's namespace again before it
// says DEL. The link that is there now is somebody else's.
func TestDelSparesSuccessor(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	old := attach(t, h, "c1", lan(t, h, nil))
	oldRT := *old.rt
	mustDo(t, h.Namespace, "ip", "netns", "delete", old.ID)

	next := &attachment{t: t, cni: h.CNI(ours), conf: lan(t, h, nil)}
	next.Namespace, next.rt = container(t, h, "c1")
	next.rt.ContainerID = "successor"
	next.add()

	wantOK(t, "DEL", old.cni.Del(t.Context(), old.conf, &oldRT))
	mustLink(t, next.Namespace, "eth0")
	wantOK(t, "CHECK of the successor", next.cni.Check(t.Context(), next.conf, next.rt))
	if held := readBooks(t, h).held(); len(held) != 1 || len(held["successor"]) != 2 {
		t.Errorf("held %v, want two addresses of the successor alone", held)
	}
}

// The ledger finds a namespace again by its inode, and the kernel gives out
// inodes again: a link without our mark there is somebody else's.
func TestDelSparesForeignLink(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", lan(t, h, nil))
	mustDo(t, a.Namespace, "ip", "link", "delete", "eth0")
	mustDo(t, h.Namespace, "ip", "link", "add", "link", lab.Parent, "name", "m0", "type", "macvlan", "mode", "bridge")
	mustDo(t, h.Namespace, "ip", "link", "set", "m0", "netns", a.ID, "name", "eth0")
	mustDo(t, a.Namespace, "ip", "link", "set", "eth0", "up")
	rt := *a.rt
	rt.NetNS = ""
	wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, &rt))
	mustLink(t, a.Namespace, "eth0")
	wantNothingHeld(t, h)
}

// DEL of one attachment leaves the container's others alone.
func TestDelSparesSiblings(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", lan(t, h, nil))
	other := &attachment{t: t, cni: a.cni, conf: a.conf, station: a.station}
	rt := *a.rt
	rt.IfName, other.rt = "eth1", &rt
	other.add()

	wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
	wantOK(t, "CHECK of the other", other.cni.Check(t.Context(), other.conf, other.rt))
	if _, there, err := a.Namespace.Link(t.Context(), "eth0"); there || err != nil {
		t.Errorf("eth0 is there: %v, error %v", there, err)
	}
	if n := len(readBooks(t, h).Attachments); n != 1 {
		t.Errorf("%d attachments in the ledger, want 1", n)
	}
}

// A release that the ledger cannot take is written down beside it, and DEL
// succeeds.
func TestDelWithoutLedger(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	a := attach(t, h, "c1", lan(t, h, nil))
	db := filepath.Join(h.DataDir, "ledger.db")
	good, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	damage(t, h)
	wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
	wantNoLink(t, a.Namespace)
	if spooled, err := filepath.Glob(filepath.Join(h.DataDir, "released.d", "*.json")); len(spooled) != 1 {
		t.Errorf("spooled releases: %v, %v; want one", spooled, err)
	}

	// Whoever opens the ledger next applies it.
	if err := os.WriteFile(db, good, 0o600); err != nil {
		t.Fatal(err)
	}
	wantOK(t, "STATUS", a.cni.Status(t.Context(), a.conf))
	wantNothingHeld(t, h)
}

// damage makes the host's ledger unreadable.
func damage(t *testing.T, h *lab.Host) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(h.DataDir, "ledger.db"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for page := range int64(2) { // each holds the root of one of the last two transactions
		if _, err := f.WriteAt(make([]byte, 4096), page*4096); err != nil {
			t.Fatal(err)
		}
	}
}
