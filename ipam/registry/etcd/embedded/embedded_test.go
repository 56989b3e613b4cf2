package embedded_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/etcd/embedded"
	"github.com/underlay-cni/underlay/ipam/registry/storetest"
)

func start(t *testing.T, c embedded.Config) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func config(t *testing.T) embedded.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return embedded.Config{DataDir: filepath.Join(t.TempDir(), "etcd"), Listen: l.Addr().String()}
}

func connect(t *testing.T, s *embedded.Server) *etcd.Store {
	t.Helper()
	store, err := etcd.New(etcd.Config{Endpoints: []string{s.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func TestContract(t *testing.T) {
	s := start(t, config(t))
	t.Cleanup(s.Close)
	storetest.Run(t, func(t *testing.T) storetest.Backend {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Delete(t.Context(), "\x00", clientv3.WithFromKey()); err != nil {
			t.Fatal(err)
		}
		return storetest.Backend{A: connect(t, s), B: connect(t, s), Compact: func(ctx context.Context, rev lease.Rev) error {
			_, err := c.Compact(ctx, int64(rev))
			return err
		}}
	})
}

func TestRestartKeepsEverything(t *testing.T) {
	c := config(t)
	s := start(t, c)
	store := connect(t, s)
	before := store.Swap(t.Context(), "/t/a", 0, []byte("1"))
	s.Close()
	s = start(t, c)
	defer s.Close()
	item, err := connect(t, s).Get(t.Context(), "/t/a")
	if before.Outcome != registry.Applied || err != nil || string(item.Value) != "1" || item.Rev != before.Rev {
		t.Errorf("wrote %+v, found %+v, %v", before, item, err)
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, c := range map[string]embedded.Config{
		"nothing":             {},
		"no port":             {DataDir: dir, Listen: "127.0.0.1"},
		"port 0":              {DataDir: dir, Listen: "127.0.0.1:0"},
		"half a key pair":     {DataDir: dir, Listen: "127.0.0.1:2379", CertFile: "x"},
		"clients without TLS": {DataDir: dir, Listen: "127.0.0.1:2379", ClientCAFile: "x"},
	} {
		if s, err := embedded.Start(t.Context(), c); err == nil {
			s.Close()
			t.Errorf("%s: it has started", name)
		}
	}
}
