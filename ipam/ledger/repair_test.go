package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/ipam/ledger/spool"
)

func TestRebuild(t *testing.T) {
	c := newClock()
	o := testOptions(t, c)
	l := open(t, o)
	add(t, l, request(pool("lan", set(t, "10.0.0.0/24")), "old"))
	old, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	addresses := func(list ...string) (out []ipam.Address) {
		for _, p := range list {
			out = append(out, ipam.Address{Prefix: netip.MustParsePrefix(p), Gateway: netip.MustParseAddr("10.0.0.1")})
		}
		return out
	}
	err = Rebuild(t.Context(), o, []Found{
		{Attachment: att("a"), Runtime: "ctr", MAC: "02:00:00:00:00:01", Pool: "lan", Addresses: addresses("10.0.0.5/24"),
			Netns: ipam.Netns{Path: "/run/netns/a", Inode: 7}, Uses: ipam.Uses{Parent: "eth1", VLAN: 5}},
		{Attachment: att("b"), Pool: "lan", Addresses: addresses("10.0.0.6/24", "10.0.0.7/24")},
		{Attachment: att("c"), Pool: "lan", Addresses: addresses("10.0.0.7/24")},
		{Pool: "lan", Reason: "interface lan0 of /run/netns/x", Addresses: addresses("10.0.0.2/24")},
		{Pool: "lan", Addresses: addresses("10.0.0.9/24")},
		{Attachment: att("d"), Uses: ipam.Uses{Parent: "eth1", HostAccess: true}},
		{Attachment: att("e")}, // has nothing
	})
	if err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	wantStates(t, l, "10.0.0.2 reserved ", "10.0.0.5 held a", "10.0.0.6 held b", "10.0.0.7 reserved ", "10.0.0.9 reserved ")
	reasons := map[string]string{}
	if err := l.Records(func(r ipam.Record) error { reasons[r.Address.Addr().String()] = r.Reason; return nil }); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]string{
		"10.0.0.2": "found in use by interface lan0 of /run/netns/x", "10.0.0.5": "",
		"10.0.0.7": "found in use by lan/b/eth0 and lan/c/eth0", "10.0.0.9": "found in use by an unknown container",
	} {
		if reasons[a] != want {
			t.Errorf("reason of %s: %q, want %q", a, reasons[a], want)
		}
	}
	info, err := l.Info()
	if err != nil || info.ID != old.ID || info.Attachments != 3 || info.Held != 2 || info.Reserved != 3 || info.Refused != "" {
		t.Errorf("%+v, %v", info, err)
	}
	if vlan, host, err := l.Users(ipam.Uses{Parent: "eth1", VLAN: 5}, 0); err != nil || len(vlan) != 1 || len(host) != 0 {
		t.Error(vlan, host, err)
	}
	if got := add(t, l, request(pool("lan", set(t, "10.0.0.0/24")), "new")); got != "10.0.0.3" {
		t.Errorf("new address %s", got)
	}
	// The pool of a is known by now; before that its addresses rest by default.
	del(t, l, "a")
	wantStates(t, l, "10.0.0.2 reserved ", "10.0.0.3 held new", "10.0.0.5 cooling a", "10.0.0.6 held b", "10.0.0.7 reserved ", "10.0.0.9 reserved ")
	shut(t, l)

	kept, err := filepath.Glob(o.dbPath() + ".*.bad")
	if err != nil || len(kept) != 1 {
		t.Fatal(kept, err)
	}
	o2 := testOptions(t, c)
	if err := boltfile.MakeDir(o2.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kept[0], o2.dbPath()); err != nil {
		t.Fatal(err)
	}
	wantStates(t, open(t, o2), "10.0.0.2 held old")
}

func TestSpool(t *testing.T) {
	c := newClock()
	o := testOptions(t, c)
	p := pool("lan", set(t, "10.0.0.0/24"))
	l := open(t, o)
	for _, id := range []string{"a", "b", "c", "later"} {
		add(t, l, request(p, id))
	}
	shut(t, l)
	c.add(time.Second)
	spooled := func(dir string, req ipam.ReleaseRequest) {
		t.Helper()
		if req.Before.IsZero() {
			req.Before = c.now
		}
		if err := Spool([]string{"/dev/null/no/folder", dir}, req); err != nil {
			t.Fatal(err)
		}
	}
	spooled(o.DataDir, ipam.ReleaseRequest{Attachment: att("a"), Undo: true})
	spooled(o.RunDir, ipam.ReleaseRequest{Attachment: att("b")})
	spooled(o.RunDir, ipam.ReleaseRequest{Attachment: att("unknown")})
	spooled(o.RunDir, ipam.ReleaseRequest{Attachment: att("later"), Before: c.now.Add(-time.Minute)})
	// What nobody can read is put aside.
	dir := filepath.Join(o.DataDir, spool.Folder)
	for name, content := range map[string]string{
		"1.json": "", "2.json": "{", "3.json": `{"attachment":{"network":"lan","containerID":"c","ifName":"eth0"}}`,
		"4.json": `{"attachment":{"network":"lan","containerID":"c"},"before":"2099-01-01T00:00:00Z"}`,
		"5.json": `{"attachment":{"network":"lan","containerID":"c","ifName":"eth0"},"before":"2099-01-01T00:00:00Z"} {}`,
		"note":   "not ours",
	} {
		write(t, filepath.Join(dir, name), []byte(content))
	}
	if err := os.Mkdir(filepath.Join(dir, "6.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	// A temporary file is somebody's who is still writing, or nobody's.
	for name, age := range map[string]time.Duration{"young.json.tmp": time.Minute, "old.json.tmp": 2 * time.Hour} {
		write(t, filepath.Join(dir, name), nil)
		if err := os.Chtimes(filepath.Join(dir, name), c.now, c.now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	l = open(t, o)
	wantStates(t, l, "10.0.0.3 cooling b", "10.0.0.4 held c", "10.0.0.5 held later")
	seq := sequence(t, l)
	shut(t, l)
	if got := sequence(t, open(t, o)); got != seq {
		t.Error("the second open has written")
	}
	var left []string
	for _, d := range []string{o.DataDir, o.RunDir} {
		entries, err := os.ReadDir(filepath.Join(d, spool.Folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, e.Name())
		}
	}
	if want := "1.json.bad 2.json.bad 3.json.bad 4.json.bad 5.json.bad 6.json.bad note young.json.tmp"; strings.Join(left, " ") != want {
		t.Errorf("left in the spool: %v", left)
	}
	if err := Spool([]string{"/dev/null/no", "/dev/null/folder"}, ipam.ReleaseRequest{Attachment: att("a")}); err == nil {
		t.Error("nothing took the release, and it was no error")
	}
	if err := Spool([]string{o.DataDir}, ipam.ReleaseRequest{}); err == nil {
		t.Error("the release of nothing was spooled")
	}
}

// While the spool cannot be applied, nothing is given out.
func TestSpoolThatCannotBeApplied(t *testing.T) {
	o := testOptions(t, newClock())
	p := pool("lan", set(t, "10.0.0.0/24"))
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	add(t, l, request(p, "a"))
	add(t, l, request(p, "b"))
	err = l.update(func(x *tx) error {
		return x.put(bucketAddress, addrKey(netip.MustParseAddr("10.0.0.2")), []byte("?"))
	})
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	if err := Spool([]string{o.DataDir}, ipam.ReleaseRequest{Attachment: att("a")}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Allocate(request(p, "c"), nil); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "apply spooled releases") {
			t.Errorf("allocate: %v", err)
		}
		del(t, l, "b")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// On the last of a full disk released addresses are forgotten rather than put
// to rest.
func TestTight(t *testing.T) {
	l := open(t, testOptions(t, newClock()))
	p := pool("lan", set(t, "10.0.0.0/24"))
	add(t, l, request(p, "a"))
	add(t, l, request(p, "b"))
	err := l.update(func(x *tx) error {
		x.tight = true
		_, err := x.releaseKnown(ipam.ReleaseRequest{Attachment: att("a")})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	wantStates(t, l, "10.0.0.3 held b")
}

// The lock is waited for, for no longer than the context says, and what is
// left waiting lets go of it.
func TestLock(t *testing.T) {
	o := testOptions(t, newClock())
	l := open(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, o); !errors.Is(err, ErrLocked) || !errors.Is(err, context.Canceled) {
		t.Fatalf("open of an open ledger: %v", err)
	}
	if err := Rebuild(ctx, o, nil); !errors.Is(err, ErrLocked) {
		t.Fatalf("rebuild of an open ledger: %v", err)
	}
	opened := make(chan error)
	go func() {
		l, err := Open(t.Context(), o)
		if err == nil {
			err = l.Close()
		}
		opened <- err
	}()
	shut(t, l)
	if err := <-opened; err != nil {
		t.Error(err)
	}
	shut(t, open(t, o))
}

// Many goroutines of one process, on one ledger and on several.
func TestConcurrentUse(t *testing.T) {
	o := testOptions(t, nil)
	p := pool("lan", set(t, "10.0.0.0/24"))
	l := open(t, o)
	var wg sync.WaitGroup
	use := func(l *Ledger, id string) error {
		for range 10 {
			if _, err := l.Allocate(request(p, id), nil); err != nil {
				return err
			}
			if err := l.Records(func(ipam.Record) error { return nil }); err != nil {
				return err
			}
			if _, err := l.Info(); err != nil {
				return err
			}
			if _, err := l.Release(ipam.ReleaseRequest{Attachment: att(id), Undo: true}); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range 8 {
		wg.Go(func() {
			if err := use(l, fmt.Sprint("c", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantStates(t, l)
	shut(t, l)
	for i := range 8 {
		wg.Go(func() {
			l, err := Open(t.Context(), o)
			if err == nil {
				err = errors.Join(use(l, fmt.Sprint("d", i)), l.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantStates(t, open(t, o))
}

func TestCompact(t *testing.T) {
	c := newClock()
	o := testOptions(t, c)
	if saved, err := Compact(t.Context(), o); err != nil || saved != 0 {
		t.Errorf("without a ledger: %d, %v", saved, err)
	}
	p := pool("lan", set(t, "10.0.0.0/16"))
	p.CoolDown = 0
	fill(t, o, p, 30_000)
	if saved, err := Compact(t.Context(), o); err != nil || saved != 0 {
		t.Errorf("a full one: %d, %v", saved, err)
	}
	l := open(t, o)
	err := l.update(func(x *tx) error {
		for i := range 29_000 {
			if _, err := x.releaseKnown(ipam.ReleaseRequest{Attachment: att(fmt.Sprintf("filler-%032d", i))}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	was := dump(t, l)
	shut(t, l)
	saved, err := Compact(t.Context(), o)
	if err != nil || saved < before.Size/2 {
		t.Errorf("saved %d of %d bytes, %v", saved, before.Size, err)
	}
	l = open(t, o)
	after, err := l.Info()
	if err != nil || after.ID != before.ID || after.Sequence != before.Sequence || after.Size != before.Size-saved || l.Refused() != nil {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
	if diff := cmp.Diff(was, dump(t, l)); diff != "" {
		t.Errorf("what is in it (-before +after):\n%s", diff)
	}
	p.Name = "other" // it goes on
	add(t, l, request(p, "a"))
}

// TestRebuildOfANode: a node in a cluster stays the one that it was, gives out
// nothing of cluster pools before the agent has looked, and knows again whose
// the addresses are that were found.
func TestRebuildOfANode(t *testing.T) {
	t.Parallel()
	o := testOptions(t, nil)
	l, err := Open(t.Context(), o)
	must(t, err)
	must(t, leaseCrashBlock(l))
	me, err := l.Node()
	must(t, err)
	a, err := l.Allocate(ipam.AllocateRequest{Attachment: att("x"), Cluster: crashCluster.Name}, nil)
	must(t, err)
	s, err := leased(l)
	must(t, err)
	must(t, l.Close())
	b, err := os.ReadFile(o.dbPath())
	must(t, err)
	must(t, os.Remove(o.dbPath()))
	must(t, Rebuild(t.Context(), o, []Found{{Attachment: att("x"), Pool: "lan", Addresses: a.Addresses}}))

	l, err = Open(t.Context(), o)
	must(t, err)
	if now, err := l.Node(); err != nil || now != me {
		t.Errorf("it was node %s, and is %s: %v", me, now, err)
	}
	if err := l.Unconfirmed(); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("its leases are confirmed: %v", err)
	}
	must(t, l.SetPools([]ipam.Pool{crashCluster}))
	if _, err := l.Learn(clusterUUID, s, true); err != nil {
		t.Fatal(err)
	}
	rec, _, err := l.Record(a.Addresses[0].Prefix.Addr())
	if err != nil || rec.PoolUUID != clusterUUID || rec.Pool != crashCluster.Name || rec.Attachment != att("x") {
		t.Errorf("what was found: %+v, %v", rec, err)
	}
	if findings, err := l.Check(); err != nil || len(findings) > 0 {
		t.Errorf("check: %q, %v", findings, err)
	}
	must(t, l.Close())

	// The old file, put back, is behind.
	must(t, os.WriteFile(o.dbPath(), b, 0o600))
	l, err = Open(t.Context(), o)
	must(t, err)
	defer l.Close()
	if err := l.Refused(); !errors.Is(err, ErrLost) {
		t.Errorf("the old one, put back: %v", err)
	}
}
