package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/storetest"
)

// freeAddr is an address that nothing listens on at the moment.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// server runs Debian's etcd for the length of the test.
type server struct {
	endpoint string
	// kill ends it as a power cut does; start starts it again.
	kill, start func()
}

func newServer(t *testing.T, scheme string, args ...string) *server {
	t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatalf("%v; apt-get install etcd-server", err)
	}
	dir, client, peer := t.TempDir(), freeAddr(t), "http://"+freeAddr(t)
	s := &server{endpoint: scheme + "://" + client}
	var cmd *exec.Cmd
	s.start = func() {
		log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd = exec.Command(program, append([]string{
			"--name=test", "--data-dir=" + filepath.Join(dir, "data"), "--listen-client-urls=" + s.endpoint, "--advertise-client-urls=" + s.endpoint,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=test=" + peer,
		}, args...)...)
		cmd.Stdout, cmd.Stderr = log, log
		// It goes with the test, however that ends.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	s.kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	s.start()
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("etcd: %s", log[max(0, len(log)-4000):])
		}
	})
	return s
}

func connect(t *testing.T, c etcd.Config) *etcd.Store {
	t.Helper()
	s, err := etcd.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// ready waits until a store answers.
func ready(t *testing.T, s registry.Store) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		if _, err := s.Get(t.Context(), "/"); err == nil {
			return
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// raw is a client of etcd's own, for what a store cannot do.
func raw(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// backend is a database without keys, with a client of each of two members,
// which may be the same.
func backend(t *testing.T, a, b string) storetest.Backend {
	t.Helper()
	c := raw(t, a)
	if _, err := c.Delete(t.Context(), "\x00", clientv3.WithFromKey()); err != nil {
		t.Fatal(err)
	}
	return storetest.Backend{
		A: connect(t, etcd.Config{Endpoints: []string{a}}), B: connect(t, etcd.Config{Endpoints: []string{b}}),
		Compact: func(ctx context.Context, rev lease.Rev) error {
			_, err := c.Compact(ctx, int64(rev))
			return err
		},
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	s := newServer(t, "http")
	ready(t, connect(t, etcd.Config{Endpoints: []string{s.endpoint}}))
	storetest.Run(t, func(t *testing.T) storetest.Backend { return backend(t, s.endpoint, s.endpoint) })
}

// TestNoServer: a login that nobody answers can be tried again.
func TestNoServer(t *testing.T) {
	t.Parallel()
	s, err := etcd.New(etcd.Config{Endpoints: []string{"http://" + freeAddr(t)}, Username: "u", Password: "p", Timeout: 100 * time.Millisecond})
	if !errors.Is(err, registry.ErrUnreachable) {
		t.Errorf("%v, %v", s, err)
	}
}

// TestServerGone: requests have no outcome while the server is away, a watch
// goes on where it was when it is back, and nothing acknowledged is lost.
func TestServerGone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newServer(t, "http")
	store := connect(t, etcd.Config{Endpoints: []string{s.endpoint}, Timeout: time.Second})
	ready(t, store)
	first := store.Swap(ctx, "/t/a", 0, []byte("1"))
	heard := make(chan registry.Item, 10)
	watched := make(chan error, 1)
	go func() {
		// As registry.Follow does it: watch again, from the last that was heard.
		after := first.Rev
		for ctx.Err() == nil {
			err := store.Watch(ctx, "/t/", after, func(b registry.Batch) error {
				for _, i := range b.Items {
					heard <- i
				}
				after = b.Rev
				return nil
			})
			if err == nil {
				watched <- err
				return
			}
		}
	}()
	s.kill()
	if a := store.Swap(ctx, "/t/a", first.Rev, []byte("2")); a.Outcome != registry.Unknown || a.Err == nil {
		t.Errorf("without a server: %s, %v", a.Outcome, a.Err)
	}
	if _, err := store.Get(ctx, "/t/a"); err == nil {
		t.Error("a read without a server")
	}
	s.start()
	ready(t, store)
	item, err := store.Get(ctx, "/t/a")
	if err != nil {
		t.Fatal(err)
	}
	second := store.Swap(ctx, "/t/a", item.Rev, []byte("3"))
	if first.Outcome != registry.Applied || second.Outcome != registry.Applied || second.Rev <= first.Rev {
		t.Fatalf("before %+v, after %+v", first, second)
	}
	for {
		select {
		case i := <-heard:
			if string(i.Value) == "3" {
				return
			}
		case <-watched:
			t.Fatal("a watch ended without a reason")
		case <-time.After(30 * time.Second):
			t.Fatal("the watch does not go on")
		}
	}
}

func TestWatchNoticesThatTheClusterWentBack(t *testing.T) {
	t.Parallel()
	s := newServer(t, "http")
	store := connect(t, etcd.Config{Endpoints: []string{s.endpoint}, Check: 100 * time.Millisecond})
	ready(t, store)
	// A watch that has heard of more than the cluster knows.
	if err := store.Watch(t.Context(), "/t/", 1000, func(registry.Batch) error { return nil }); err != registry.ErrWentBack {
		t.Errorf("%v, want ErrWentBack", err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := authority(t, dir, "ca")
	ca.issue(t, dir, "server")
	ca.issue(t, dir, "client")
	authority(t, dir, "other").issue(t, dir, "stranger")
	file := func(name string) string { return filepath.Join(dir, name) }
	s := newServer(t, "https", "--cert-file="+file("server.pem"), "--key-file="+file("server.key"), "--client-cert-auth", "--trusted-ca-file="+file("ca.pem"))
	good := etcd.Config{Endpoints: []string{s.endpoint}, CAFile: file("ca.pem"), CertFile: file("client.pem"), KeyFile: file("client.key")}
	store := connect(t, good)
	ready(t, store)
	if a := store.Swap(t.Context(), "/t/a", 0, []byte("1")); a.Outcome != registry.Applied {
		t.Errorf("%s: %v", a.Outcome, a.Err)
	}
	for name, change := range map[string]func(*etcd.Config){
		"no client certificate":    func(c *etcd.Config) { c.CertFile, c.KeyFile = "", "" },
		"a stranger's certificate": func(c *etcd.Config) { c.CertFile, c.KeyFile = file("stranger.pem"), file("stranger.key") },
		"another authority":        func(c *etcd.Config) { c.CAFile = file("other.pem") },
		"the system's authorities": func(c *etcd.Config) { c.CAFile = "" },
	} {
		c := good
		c.Timeout = time.Second
		change(&c)
		if a := connect(t, c).Swap(t.Context(), "/t/b", 0, nil); a.Outcome == registry.Applied || a.Err == nil {
			t.Errorf("%s: %s", name, a.Outcome)
		}
	}
	for name, c := range map[string]etcd.Config{
		"no endpoints":    {},
		"no such file":    {Endpoints: good.Endpoints, CAFile: file("none")},
		"no certificate":  {Endpoints: good.Endpoints, CAFile: file("ca.key")},
		"half a key pair": {Endpoints: good.Endpoints, CertFile: file("client.pem")},
	} {
		if _, err := etcd.New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPassword(t *testing.T) {
	t.Parallel()
	s := newServer(t, "http")
	ready(t, connect(t, etcd.Config{Endpoints: []string{s.endpoint}}))
	c, ctx := raw(t, s.endpoint), t.Context()
	for _, do := range []func() error{
		func() error { _, err := c.UserAdd(ctx, "root", "secret"); return err },
		func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	a := connect(t, etcd.Config{Endpoints: []string{s.endpoint}, Username: "root", Password: "secret"}).Swap(ctx, "/t/a", 0, nil)
	if a.Outcome != registry.Applied {
		t.Errorf("with the password: %s, %v", a.Outcome, a.Err)
	}
	if a := connect(t, etcd.Config{Endpoints: []string{s.endpoint}}).Swap(ctx, "/t/b", 0, nil); a.Outcome == registry.Applied || a.Err == nil {
		t.Errorf("without a password: %s", a.Outcome)
	}
	// This one fails as soon as it connects.
	wrong, err := etcd.New(etcd.Config{Endpoints: []string{s.endpoint}, Username: "root", Password: "wrong", Timeout: time.Second})
	if err == nil {
		defer wrong.Close()
		if a := wrong.Swap(ctx, "/t/b", 0, nil); a.Outcome == registry.Applied {
			t.Error("with a wrong password")
		}
	}
}

// issuer is a certificate authority.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func authority(t *testing.T, dir, name string) issuer {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key := write(t, dir, name, template, nil)
	return issuer{template, key}
}

func (i issuer) issue(t *testing.T, dir, name string) {
	t.Helper()
	write(t, dir, name, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, &i)
}

// write makes a key pair with a certificate by i, or by itself.
func write(t *testing.T, dir, name string, template *x509.Certificate, i *issuer) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	by := issuer{template, key}
	if i != nil {
		by = *i
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: cert}, name + ".key": {Type: "EC PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), slices.Clone(pem.EncodeToMemory(block)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return key
}
