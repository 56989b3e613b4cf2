package registry_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/memstore"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// TestUnreadIsNotAbsent: a value that cannot be understood is shown, and what
// it stands for is not given to anybody.
func TestUnreadIsNotAbsent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := memstore.New()
	r := registry.Registry{Store: s}
	if _, err := r.Open(ctx); err != nil {
		t.Fatal(err)
	}
	p := create(t, r, "red")
	first, others := netip.MustParsePrefix("10.0.0.0/30"), []string{"10.0.0.4/30", "10.0.0.8/30", "10.0.0.12/30"}
	for _, cidr := range others {
		leased(t, r, p, n2, cidr)
	}
	blockKey := record.BlockKey(p.UUID, first)
	bad := map[string]string{
		blockKey:                       `{"version":2,"cidr":"10.0.0.0/30","zone":"b"}`,
		record.BlockFolder + "x":       `{}`,
		record.GoneFolder + string(n1): `garbage`,
		record.NetworkFolder + "a":     `{"version":1,"name":"b","pool":"pods","backend":"hostgw","tenant":"red"}`,
		record.WantFolder + "x/y":      `null`,
		record.Prefix + "unheard":      `{}`,
		record.TenantFolder + "red":    `{"version":1,"name":"red","quota":-1}`,
		record.BlockKey(p.UUID, netip.MustParsePrefix("10.0.0.4/30")) + "0": `{"version":1,"cidr":"10.0.0.4/30"}`,
	}
	for key, value := range bad {
		s.Put(key, []byte(value))
	}
	v := view(t, r)
	for key := range bad {
		if v.Unread[key] == nil {
			t.Errorf("%s is not counted", key)
		}
	}
	if len(v.Unread) != len(bad) {
		t.Errorf("skipped: %v", v.Unread)
	}
	if !v.Present(n1).Removed {
		t.Error("a tombstone that cannot be read is none")
	}
	if v.Room(p.UUID, 0) == nil {
		t.Error("a quota that cannot be read is none")
	}
	search, err := v.Search(p, 0, lease.Search{Node: n1, Waiting: true})
	if err != nil {
		t.Fatal(err)
	}
	if found := search.Find(); found.CIDR.IsValid() || !found.Ask {
		t.Errorf("found %+v", found)
	}
	if _, err := r.Block(ctx, p.UUID, first); !errors.Is(err, record.ErrNewer) {
		t.Errorf("read: %v", err)
	}
	if err := r.DeletePool(ctx, "pods"); err == nil {
		t.Error("the pool is deleted")
	}
	// Put right, it counts again.
	value, err := record.EncodeBlock(lease.Block{CIDR: first})
	if err != nil {
		t.Fatal(err)
	}
	v.Apply(registry.Batch{Items: []registry.Item{{Key: blockKey, Value: value, Rev: v.Rev + 1}}, Rev: v.Rev + 1})
	if v.Unread[blockKey] != nil || v.Blocks[p.UUID][first].Rev != v.Rev {
		t.Errorf("mended: %v", v.Unread[blockKey])
	}
	s.Put(record.ClusterKey, []byte(`{}`))
	if !view(t, r).Present(n2).Frozen {
		t.Error("without a readable cluster record all is said to be well")
	}
}

// TestFollow: what is shown in the end is what a full list shows, whatever
// breaks on the way, and nothing that was deleted meanwhile stays.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := memstore.New()
		r := registry.Registry{Store: s}
		p := create(t, r, "")
		var pauses []error
		var last *registry.View
		views := 0
		done := make(chan error)
		go func() {
			done <- registry.Follow(ctx, s.As("follower"), nil, new(sync.Mutex), func(_ context.Context, err error, failures int) error {
				pauses = append(pauses, err)
				if failures > 3 {
					s.Rig(nil)
				}
				return nil
			}, func(v *registry.View, _ registry.News) error {
				last, views = v, views+1
				return nil
			})
		}()
		check := func(what string) {
			t.Helper()
			synctest.Wait()
			want := view(t, r)
			if diff := cmp.Diff(want, last, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty(), cmpopts.EquateErrors()); diff != "" {
				t.Errorf("%s (-want +got)\n%s", what, diff)
			}
		}
		check("at first")
		leased(t, r, p, n1, "10.0.0.0/30")
		leased(t, r, p, n2, "10.0.0.4/30")
		check("after changes")

		// While the watch hears nothing, something goes, and history with it.
		s.Hold(true)
		seen := leased(t, r, p, n1, "10.0.0.8/30")
		s.Delete(ctx, record.BlockKey(p.UUID, seen.Block.CIDR), seen.Rev)
		s.Compact(view(t, r).Rev)
		s.Hold(false)
		synctest.Wait()
		if len(pauses) != 1 || !errors.Is(pauses[0], registry.ErrCompacted) {
			t.Errorf("pauses: %v", pauses)
		}
		check("after compaction")

		// The store goes away, comes back, and has lost what was last written.
		snap := s.Snapshot()
		leased(t, r, p, n1, "10.0.0.12/30")
		check("before the restore")
		s.Rig(func(q memstore.Request) memstore.Fault {
			if q.Client == "follower" {
				return memstore.Fail
			}
			return memstore.Deliver
		})
		s.Restore(snap)
		check("after the restore")
		if !slices.ContainsFunc(pauses, func(err error) bool { return errors.Is(err, registry.ErrWentBack) }) {
			t.Errorf("nobody was told that the store went back: %v", pauses)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if views < 5 {
			t.Errorf("%d views", views)
		}
	})
}

func TestFollowEndsWithItsFunction(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	own := errors.New("own")
	n := 0
	err := registry.Follow(t.Context(), s, nil, new(sync.Mutex), nil, func(*registry.View, registry.News) error {
		if n++; n == 2 {
			return own
		}
		go s.Put(record.TenantFolder+"a", []byte(`{"version":1,"name":"a","quota":1}`))
		return nil
	})
	if !errors.Is(err, own) {
		t.Errorf("%v", err)
	}
	broken := errors.New("enough")
	s.Rig(func(memstore.Request) memstore.Fault { return memstore.Fail })
	err = registry.Follow(t.Context(), s, nil, new(sync.Mutex), func(context.Context, error, int) error { return broken }, nil)
	if !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestNews: a change is about the nodes that a block names or named, and about
// everybody if it may change what anybody does; and about peers where routes to
// them may be others.
func TestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := memstore.New()
		r := registry.Registry{Store: s}
		if _, err := r.Open(ctx); err != nil {
			t.Fatal(err)
		}
		p := create(t, r, "")
		first, err := r.View(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var told []registry.News
		done := make(chan error)
		go func() {
			done <- registry.Follow(ctx, s, first, &mu, nil, func(_ *registry.View, n registry.News) error {
				told = append(told, n)
				return nil
			})
		}()
		block := leased(t, r, p, n1, "10.0.0.0/30")
		returned, err := block.Block.Give(n1, map[netip.Addr]lease.Entry{block.Block.CIDR.Addr(): {Node: n2}})
		if err != nil {
			t.Fatal(err)
		}
		session, err := r.Bind(ctx, record.Live{Node: n1}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		frozen := record.Frozen{Node: n1, Reason: "a test", Epoch: 1, Rev: 1}
		tests := []struct {
			name     string
			do       func() error
			me, peer bool // whether it is about n1, n2
			peers    bool
		}{
			{"a node joins", func() error { return r.Enroll(ctx, record.Node{Node: n2, Asserted: 1}) }, false, false, true},
			{"another's block", func() error { leased(t, r, p, n2, "10.0.0.4/30"); return nil }, false, true, true},
			{"another's block that was read before it is told", func() error {
				mu.Lock()
				defer mu.Unlock()
				leased(t, r, p, n2, "10.0.0.8/30")
				return r.Refresh(ctx, first, p.UUID)
			}, false, true, true},
			{"an address given away", func() error {
				_, a := r.Send(ctx, p.UUID, lease.Step{Do: lease.Send, Block: returned, Rev: block.Rev})
				return a.Err
			}, true, true, false},
			{"a node that has not asserted", func() error { return r.Enroll(ctx, record.Node{Node: n1}) }, true, true, true},
			{"and now it has", func() error { return r.Enroll(ctx, record.Node{Node: n1, Asserted: 1}) }, true, true, true},
			{"a block that cannot be read", func() error {
				s.Put(record.BlockKey(p.UUID, netip.MustParsePrefix("10.0.0.4/30")), []byte("{"))
				return nil
			}, false, true, true},
			{"a tenant", func() error { return r.PutTenant(ctx, record.Tenant{Name: "red", Quota: 1}) }, true, true, false},
			{"a tombstone", func() error {
				s.Put(record.GoneFolder+string(n2), []byte("{"))
				return nil
			}, true, true, true},
			{"another's flag", func() error { return r.Raise(ctx, session, p.UUID, n2, 0, 0).Err }, false, true, false},
			{"and down", func() error { return r.Lower(ctx, p.UUID, n2) }, false, true, false},
			{"the cluster", func() error { return r.Freeze(ctx, frozen) }, true, true, false},
		}
		for _, tt := range tests {
			synctest.Wait()
			told = nil
			if err := tt.do(); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			synctest.Wait()
			me, peer, peers, wants := false, false, false, false
			for _, n := range told {
				wants = wants || n.Wants[p.UUID]
				me, peer, peers = me || n.For(n1), peer || n.For(n2), peers || n.Peers
			}
			if len(told) == 0 || me != tt.me || peer != tt.peer || peers != tt.peers {
				t.Errorf("%s: about n1 %v, n2 %v, peers %v, want %v, %v, %v", tt.name, me, peer, peers, tt.me, tt.peer, tt.peers)
			}
			if up := tt.name == "another's flag"; wants != up {
				t.Errorf("%s: asks who has something to give: %v, want %v", tt.name, wants, up)
			}
		}
		told = nil
		if _, err := r.Bind(ctx, record.Live{Node: n2}, time.Minute); err != nil {
			t.Fatal(err)
		}
		if synctest.Wait(); len(told) != 0 {
			t.Errorf("a sign of life is told: %+v", told)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
}

// TestOlderThanKnown: what the watch brings late does not take the place of what
// was read since.
func TestOlderThanKnown(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	r := registry.Registry{Store: s}
	if _, err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := create(t, r, "")
	v := view(t, r)
	old := leased(t, r, p, n1, "10.0.0.0/30")
	item, err := s.Get(t.Context(), record.BlockKey(p.UUID, old.Block.CIDR))
	if err != nil {
		t.Fatal(err)
	}
	next, err := old.Block.Give(n1, map[netip.Addr]lease.Entry{old.Block.CIDR.Addr(): {Node: n2}})
	if err != nil {
		t.Fatal(err)
	}
	newer, a := r.Send(t.Context(), p.UUID, lease.Step{Do: lease.Send, Block: next, Rev: old.Rev})
	if a.Outcome != registry.Applied {
		t.Fatal(a)
	}
	if err := r.Refresh(t.Context(), v, p.UUID); err != nil {
		t.Fatal(err)
	}
	v.Apply(registry.Batch{Items: []registry.Item{item}, Rev: item.Rev})
	if got := v.Blocks[p.UUID][old.Block.CIDR]; got.Rev != newer.Rev || !got.Block.Has(n2, old.Block.CIDR.Addr()) {
		t.Errorf("the view has %+v, want revision %d", got, newer.Rev)
	}
}

// TestBlockOfAnotherSize: it is skipped, whatever comes first, it or its pool.
func TestBlockOfAnotherSize(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	r := registry.Registry{Store: s}
	if _, err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := create(t, r, "")
	before := view(t, r)
	good := leased(t, r, p, n2, "10.0.0.0/30")
	cidr := netip.MustParsePrefix("10.0.0.0/29")
	value, err := record.EncodeBlock(lease.Block{CIDR: cidr, Owner: n1})
	if err != nil {
		t.Fatal(err)
	}
	key := record.BlockKey(p.UUID, cidr)
	s.Put(key, value)
	if err := r.Refresh(t.Context(), before, p.UUID); err != nil {
		t.Fatal(err)
	}
	if _, there := before.Blocks[p.UUID][cidr]; there || before.Blocks[p.UUID][good.Block.CIDR].Rev != good.Rev {
		t.Errorf("a refresh brought %v", before.Blocks)
	}
	l, err := s.List(t.Context(), record.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		v := registry.NewView(registry.List{})
		for _, i := range l.Items {
			v.Apply(registry.Batch{Items: []registry.Item{i}, Rev: l.Rev})
		}
		if _, there := v.Blocks[p.UUID][cidr]; there || v.Unread[key] == nil || len(v.Blocks[p.UUID]) != 1 {
			t.Errorf("the view has %v, unread %v", v.Blocks, v.Unread)
		}
		slices.Reverse(l.Items)
	}
}
