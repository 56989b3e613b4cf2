package etcd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/storetest"
)

// members starts a cluster of three.
func members(t *testing.T) (servers []*server, endpoints []string) {
	t.Helper()
	names := []string{"a", "b", "c"}
	var peers, cluster []string
	for _, name := range names {
		peer := "http://" + freeAddr(t)
		peers, cluster = append(peers, peer), append(cluster, name+"="+peer)
	}
	for i, name := range names {
		s := newServer(t, "http", "--name="+name, "--initial-cluster="+strings.Join(cluster, ","),
			"--listen-peer-urls="+peers[i], "--initial-advertise-peer-urls="+peers[i])
		servers, endpoints = append(servers, s), append(endpoints, s.endpoint)
	}
	return servers, endpoints
}

// TestThreeMembers: the contract holds on three members; with one killed the
// registry goes on, with two nothing is applied, and when they come back
// nothing is lost.
func TestThreeMembers(t *testing.T) {
	t.Parallel()
	servers, endpoints := members(t)
	ctx := t.Context()
	store := connect(t, etcd.Config{Endpoints: endpoints, Timeout: 2 * time.Second})
	ready(t, store)
	t.Run("contract", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Backend { return backend(t, endpoints[0], endpoints[1]) })
	})

	// swap repeats until it is known what came of it.
	swap := func(value string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			item, err := store.Get(ctx, "/t/n")
			if err == nil && string(item.Value) == value {
				return
			}
			if err == nil && store.Swap(ctx, "/t/n", item.Rev, []byte(value)).Outcome == registry.Applied {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%q was not written: %v", value, err)
			}
		}
	}
	swap("three members")
	servers[0].kill()
	swap("two members")
	servers[1].kill()
	if a := store.Swap(ctx, "/t/x", 0, []byte("one member")); a.Outcome != registry.Unknown || a.Err == nil {
		t.Errorf("with one member of three: %s, %v", a.Outcome, a.Err)
	}
	if item, err := store.Get(ctx, "/t/n"); err == nil {
		t.Errorf("a read without a quorum: %+v", item)
	}
	servers[0].start()
	servers[1].start()
	ready(t, store)
	if item, err := store.Get(ctx, "/t/n"); err != nil || string(item.Value) != "two members" {
		t.Errorf("back again: %+v, %v", item, err)
	}
	swap("three again")
}
