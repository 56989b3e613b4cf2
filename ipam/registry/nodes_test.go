package registry_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

func TestOpenAndEnroll(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	c, err := r.Open(ctx)
	if err != nil || c.Epoch.Number != 1 || !record.ValidUUID(c.ID) {
		t.Fatalf("%+v, %v", c, err)
	}
	if again, err := r.Open(ctx); err != nil || again != c {
		t.Errorf("opened again: %+v, %v", again, err)
	}
	addr := netip.MustParseAddr("192.0.2.1")
	// What it has asserted stays so, and while it knows none of its addresses those
	// stay that it had.
	for _, n := range []record.Node{{Asserted: 1, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}, {Addresses: []netip.Addr{addr}}, {}} {
		n.Node, n.Name, n.Machine = n1, "n1", "m"
		if err := r.Enroll(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	if n := view(t, r).Nodes[n1].Value; n.Asserted != 1 || n.Name != "n1" || len(n.Addresses) != 1 || n.Addresses[0] != addr {
		t.Errorf("%+v", n)
	}
	if err := r.Enroll(ctx, record.Node{Node: n2, Name: "a name"}); err == nil || len(view(t, r).Unread) > 0 {
		t.Errorf("a name that nobody can read: %v, unread: %v", err, view(t, r).Unread)
	}
	if err := r.Enroll(ctx, record.Node{Node: n1, Name: "n1", Machine: "other"}); !errors.Is(err, registry.ErrCopied) {
		t.Errorf("a copy of the ledger: %v", err)
	}
	// The record that says which cluster it is has gone: this is no new one.
	if err := func() error {
		i, _ := r.Store.Get(ctx, record.ClusterKey)
		r.Store.Delete(ctx, record.ClusterKey, i.Rev)
		_, err := r.Open(ctx)
		return err
	}(); !errors.Is(err, registry.ErrNotEmpty) {
		t.Errorf("without its record: %v", err)
	}
}

// TestUnreadNode: a node whose record cannot be read may have asserted nothing,
// until it is removed; what is no node's keeps nobody waiting.
func TestUnreadNode(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	r := registry.Registry{Store: s}
	if _, err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Put(record.NodeFolder+"junk", []byte("junk"))
	if v := view(t, r); v.Present(n1).Waits || len(v.Unread) != 1 {
		t.Errorf("a key of no node: %+v, %v", v.Present(n1), v.Unread)
	}
	s.Put(record.NodeFolder+string(n2), []byte(`{"version":2}`))
	if v := view(t, r); !v.Present(n1).Waits {
		t.Error("nobody waits for a node whose record cannot be read")
	}
	if err := r.Remove(t.Context(), n2, 0); err != nil {
		t.Fatal(err)
	}
	if v := view(t, r); v.Present(n1).Waits {
		t.Error("a node that was removed is waited for")
	}
}

func TestRemoveAndSweep(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := memstore.New()
	r := registry.Registry{Store: s}
	p := create(t, r, "")
	leased(t, r, p, n1, "10.0.0.0/30")
	leased(t, r, p, n2, "10.0.0.4/30")
	seen, a := r.Send(ctx, p.UUID, lease.Step{Do: lease.Send, Rev: leased(t, r, p, n2, "10.0.0.8/30").Rev, Block: lease.Block{
		CIDR: netip.MustParsePrefix("10.0.0.8/30"), Owner: n2,
		Given: map[netip.Addr]lease.Entry{netip.MustParseAddr("10.0.0.9"): {Node: n1, Key: "ns/web-0"}},
	}})
	if a.Outcome != registry.Applied {
		t.Fatal(a)
	}
	if err := r.Enroll(ctx, record.Node{Node: n1, Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	session, err := r.Bind(ctx, record.Live{Node: n1, Machine: "m"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, n1, time.Hour); !errors.Is(err, registry.ErrLive) {
		t.Errorf("while its agent runs: %v", err)
	}
	if err := r.Remove(ctx, "30000000-0000-4000-8000-000000000000", 0); !errors.Is(err, registry.ErrNoNode) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := r.Sweep(ctx, n1); err == nil {
		t.Error("a node was swept that was not removed")
	}
	newer, err := s.Bind(ctx, record.LiveFolder+string(n2), []byte(`{"version":2}`), time.Minute, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, n2, 0); !errors.Is(err, registry.ErrUnread) {
		t.Errorf("with a sign of life that cannot be read: %v", err)
	}
	// What goes with no session is no sign of life.
	const n4 = "40000000-0000-4000-8000-000000000000"
	if err := r.Enroll(ctx, record.Node{Node: n4, Name: "n4"}); err != nil {
		t.Fatal(err)
	}
	s.Put(record.LiveFolder+n4, record.EncodeLive(record.Live{Node: n4}))
	if alive, err := r.Alive(ctx); err != nil || !alive[n1] || !alive[n2] || alive[n4] {
		t.Errorf("alive are %v, %v", alive, err)
	}
	if err := errors.Join(r.Remove(ctx, n4, 0), newer.Close(ctx)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(session.Close(ctx), r.Remove(ctx, n1, time.Hour), r.Remove(ctx, n1, time.Minute)); err != nil {
		t.Fatal(err)
	}
	v := view(t, r)
	if g := v.Gone[n1].Value; g.Rest != time.Hour || g.Name != "n1" || v.Present(n1).Removed != true || v.Present(n2).Removed {
		t.Errorf("%+v", g)
	}
	if got := v.Blocks[p.UUID][netip.MustParsePrefix("10.0.0.0/30")].Block.Owner; got != n1 {
		t.Errorf("before it has rested the block is %q's", got)
	}
	if err := r.Enroll(ctx, record.Node{Node: n1}); !errors.Is(err, registry.ErrRemoved) {
		t.Errorf("it comes back: %v", err)
	}
	// Another operation gets in between: the sweep says what is left, and the
	// next one does it.
	s.Rig(func(q memstore.Request) memstore.Fault {
		if q.Kind == "swap" && q.Key == record.BlockKey(p.UUID, seen.Block.CIDR) {
			return memstore.Fail
		}
		return memstore.Deliver
	})
	if left, err := r.Sweep(ctx, n1); left != 1 || !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("left %d, %v", left, err)
	}
	s.Rig(nil)
	if left, err := r.Sweep(ctx, n1); left != 0 || err != nil {
		t.Errorf("left %d, %v", left, err)
	}
	v = view(t, r)
	for cidr, s := range v.Blocks[p.UUID] {
		if s.Block.Names(n1) {
			t.Errorf("%s names it still", cidr)
		}
	}
	if e := v.Blocks[p.UUID][seen.Block.CIDR].Block.At(netip.MustParseAddr("10.0.0.9")); !e.Parked() || e.Key != "ns/web-0" {
		t.Errorf("what it had for a sticky owner is %+v", e)
	}
	if _, there := v.Nodes[n1]; there || len(v.Gone) != 2 {
		t.Error("the node is left, or its tombstone is not")
	}
}

// TestFreezeAndRecover: after a restore nothing is traded before each node has
// asserted what it has, and revisions do not come again.
func TestFreezeAndRecover(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := memstore.New()
	r := registry.Registry{Store: s}
	c, err := r.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p := create(t, r, "")
	for _, n := range []lease.Node{n1, n2} {
		if err := r.Enroll(ctx, record.Node{Node: n, Asserted: 1}); err != nil {
			t.Fatal(err)
		}
	}
	snap := s.Snapshot()
	seen := leased(t, r, p, n1, "10.0.0.0/30")
	book, _, err := lease.Book{Node: n1, CIDR: seen.Block.CIDR}.Learn(seen, true)
	if err != nil {
		t.Fatal(err)
	}
	past := lease.Past{Cluster: c.ID, Epoch: c.Epoch, Rev: view(t, r).Rev}
	stands := func(when string, n lease.Node, past lease.Past, want lease.Standing) {
		t.Helper()
		if got := lease.Stand(past, view(t, r).Present(n)); got != want {
			t.Errorf("%s node %s stands %d, want %d", when, n[:1], got, want)
		}
	}
	stands("before", n1, past, lease.Trading)
	s.Restore(snap)
	stands("restored,", n1, past, lease.Freezing)
	if err := errors.Join(
		r.Freeze(ctx, record.Frozen{Node: n1, Reason: "went back", Epoch: 1, Rev: past.Rev}),
		r.Freeze(ctx, record.Frozen{Node: n2, Epoch: 1, Rev: past.Rev + 20}),
		r.Freeze(ctx, record.Frozen{Node: n2, Epoch: 1, Rev: 1}),
	); err != nil {
		t.Fatal(err)
	}
	stands("frozen,", n1, past, lease.Frozen)
	stands("frozen,", n2, lease.Past{Cluster: c.ID, Epoch: c.Epoch}, lease.Frozen)
	epoch, err := r.Recover(ctx)
	if v := view(t, r); err != nil || epoch.Number != 2 || v.Rev <= past.Rev+20 || v.Cluster.Value.Frozen != nil {
		t.Fatalf("epoch %+v, revision %d, %v", epoch, v.Rev, err)
	}
	stands("recovered,", n1, past, lease.Asserting)
	for range 5 {
		now, err := r.Block(ctx, p.UUID, seen.Block.CIDR)
		if err != nil {
			t.Fatal(err)
		}
		step := lease.NextAssert(book, now)
		if step.Do == lease.Send {
			r.Send(ctx, p.UUID, step)
		} else if step.Do == lease.Adopt {
			book = book.Adopt(now)
		}
	}
	if now, _ := r.Block(ctx, p.UUID, seen.Block.CIDR); len(now.Block.Nodes()) != 1 || now.Block.Nodes()[n1] != 4 || book.Rev != now.Rev {
		t.Errorf("asserted: %+v, ledger at %d", now, book.Rev)
	}
	past.Epoch, past.Rev = epoch, view(t, r).Rev
	if err := r.Enroll(ctx, record.Node{Node: n1, Asserted: 2}); err != nil {
		t.Fatal(err)
	}
	stands("the other has yet to assert,", n1, past, lease.Waiting)
	if err := r.Remove(ctx, n2, 0); err != nil {
		t.Fatal(err)
	}
	stands("the other was removed,", n1, past, lease.Trading)
}

func TestSessions(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	live := record.Live{Node: n1, Machine: "m", Boot: "b", Device: 1, Inode: 2}
	first, err := r.Bind(ctx, live, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	copied := live
	copied.Machine = "other"
	if _, err := r.Bind(ctx, copied, time.Minute); !errors.Is(err, registry.ErrTaken) {
		t.Errorf("a copy of the ledger: %v", err)
	}
	second, err := r.Bind(ctx, live, time.Minute)
	if err != nil {
		t.Fatalf("a restart of the agent: %v", err)
	}
	if err := context.Cause(first.Context()); !errors.Is(err, registry.ErrSessionLost) {
		t.Errorf("the agent before: %v", err)
	}
	p := create(t, r, "")
	if a := r.Raise(ctx, second, p.UUID, n1, 0, 3); a.Outcome != registry.Applied {
		t.Fatal(a)
	}
	if a := r.Raise(ctx, second, p.UUID, n1, 0, 5); a.Outcome != registry.Refused {
		t.Errorf("a second flag is %s", a.Outcome)
	}
	if w := view(t, r).Wants[p.UUID][n1]; w.Have != 3 || w.Rev == 0 {
		t.Errorf("flag %+v", w)
	}
	if err := errors.Join(r.Lower(ctx, p.UUID, n1), r.Lower(ctx, p.UUID, n1)); err != nil {
		t.Error(err)
	}
	if v := view(t, r); len(v.Wants[p.UUID]) != 0 {
		t.Errorf("%+v", v.Wants)
	}
	if alive, err := r.Alive(ctx); err != nil || len(alive) != 1 || !alive[n1] {
		t.Errorf("alive: %v, %v", alive, err)
	}
}

// TestRegistryMadeAnew: the registry is lost without a backup. The node that
// knew the old one says so, and the new one becomes it.
func TestRegistryMadeAnew(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := registry.Registry{Store: memstore.New()}
	if err := r.Freeze(ctx, record.Frozen{Node: n1}); !errors.Is(err, registry.ErrNoCluster) {
		t.Errorf("freeze nothing: %v", err)
	}
	if _, err := r.Recover(ctx); !errors.Is(err, registry.ErrNoCluster) {
		t.Errorf("recover nothing: %v", err)
	}
	if _, err := r.Open(ctx); err != nil {
		t.Fatal(err)
	}
	past := lease.Past{Cluster: record.NewUUID(), Epoch: lease.Epoch{Number: 3, ID: record.NewUUID()}, Rev: 500}
	if got := lease.Stand(past, view(t, r).Present(n1)); got != lease.Freezing {
		t.Errorf("stands %d", got)
	}
	if err := errors.Join(
		r.Enroll(ctx, record.Node{Node: n1, Asserted: past.Epoch.Number}),
		r.Freeze(ctx, record.Frozen{Node: n1, Reason: "another cluster", Cluster: past.Cluster, Epoch: past.Epoch.Number, Rev: past.Rev}),
	); err != nil {
		t.Fatal(err)
	}
	epoch, err := r.Recover(ctx)
	if v := view(t, r); err != nil || epoch.Number != 4 || v.Rev <= past.Rev || v.Cluster.Value.ID != past.Cluster {
		t.Fatalf("%+v, %+v, %v", epoch, v.Cluster, err)
	}
	if got := lease.Stand(past, view(t, r).Present(n1)); got != lease.Asserting {
		t.Errorf("stands %d", got)
	}
}
