package etcd_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/etcd/embedded"
)

// TestEmbeddedTLS: an embedded registry with certificates answers those that show one
// of its authority, and nobody else.
func TestEmbeddedTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := authority(t, dir, "ca")
	ca.issue(t, dir, "server")
	ca.issue(t, dir, "node")
	authority(t, dir, "other").issue(t, dir, "stranger")
	file := func(name string) string { return filepath.Join(dir, name) }
	s, err := embedded.Start(t.Context(), embedded.Config{
		DataDir: filepath.Join(dir, "etcd"), Listen: freeAddr(t),
		CertFile: file("server.pem"), KeyFile: file("server.key"), ClientCAFile: file("ca.pem"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	good := etcd.Config{Endpoints: []string{s.Endpoint()}, CAFile: file("ca.pem"), CertFile: file("node.pem"), KeyFile: file("node.key")}
	if a := connect(t, good).Swap(t.Context(), "/t/a", 0, []byte("1")); a.Outcome != registry.Applied {
		t.Errorf("a node: %s, %v", a.Outcome, a.Err)
	}
	for name, change := range map[string]func(*etcd.Config){
		"no certificate":           func(c *etcd.Config) { c.CertFile, c.KeyFile = "", "" },
		"a stranger's certificate": func(c *etcd.Config) { c.CertFile, c.KeyFile = file("stranger.pem"), file("stranger.key") },
		"without TLS":              func(c *etcd.Config) { c.Endpoints = []string{"http" + s.Endpoint()[len("https"):]} },
	} {
		c := good
		c.Timeout = time.Second
		change(&c)
		if a := connect(t, c).Swap(t.Context(), "/t/b", 0, nil); a.Outcome == registry.Applied || a.Err == nil {
			t.Errorf("%s: %s", name, a.Outcome)
		}
	}
	if item, err := connect(t, good).Get(t.Context(), "/t/b"); err != nil || item.Rev != 0 {
		t.Errorf("somebody has written %+v, %v", item, err)
	}
}
