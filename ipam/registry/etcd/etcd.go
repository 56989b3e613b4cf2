// Package etcd is the registry's store on an etcd cluster, your own or the
// embedded one: by TLS and password if so configured.
//
// A swap is a transaction that compares the key's modification revision. The
// client sends a change once; when it cannot tell what came of it, the outcome
// is unknown. Reads go through a quorum.
//
// Left out: compaction of the history, which is etcd's own to do
// (--auto-compaction-retention), and running a server (package embedded).
package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
)

// Config says where the cluster is.
type Config struct {
	// Endpoints are URLs, https:// for TLS; required.
	Endpoints []string
	// CAFile verifies the servers; default: the system's authorities.
	CAFile string
	// CertFile and KeyFile are what this client shows; both or none.
	CertFile, KeyFile string
	// Username and Password for etcd's own authentication; "" for none.
	Username, Password string
	// Timeout of one request; default 5s. What has not landed then may do so
	// later, but not for much longer: the server knows of it too.
	Timeout time.Duration
	// Check is how often a watch makes sure that the cluster has not gone back
	// to before what it has heard: etcd itself would say nothing until it is
	// there again. Default 10s.
	Check time.Duration
}

// patience is how many times longer a list or the start of a session may take.
// After an outage all agents come with these at once, and who gives up early only
// comes again: nobody gets anywhere.
const patience = 3

// Store is a connection to a cluster.
type Store struct {
	client         *clientv3.Client
	timeout, check time.Duration
}

var _ registry.Store = (*Store)(nil)

// New makes a connection. It does not wait for the cluster: requests do. But a
// user's password is shown to it first; registry.ErrUnreachable is returned when
// there is no answer to that.
func New(c Config) (*Store, error) {
	if len(c.Endpoints) == 0 {
		return nil, errors.New("etcd: no endpoints")
	}
	s := &Store{timeout: c.Timeout, check: c.Check}
	if s.timeout == 0 {
		s.timeout = 5 * time.Second
	}
	if s.check == 0 {
		s.check = 10 * time.Second
	}
	security, err := c.tls()
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	s.client, err = clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints,
		TLS:       security,
		Username:  c.Username,
		Password:  c.Password,
		// The client gives a session up whose first renewal is not answered within
		// this time and a second, although it lasts longer.
		DialTimeout: patience * s.timeout,
		// After an outage it is found again within seconds, however long that was.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		})},
		// A server that is cut off is left for another one within seconds.
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		// What goes wrong is returned, and logged by whoever gets it.
		Logger: zap.NewNop(),
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("etcd: log in at %s: %w: %w", strings.Join(c.Endpoints, ", "), registry.ErrUnreachable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return s, nil
}

func (c Config) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: holds no certificate", c.CAFile)
		}
	}
	if c.CertFile != "" || c.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// Close ends the connection.
func (s *Store) Close() error { return s.client.Close() }

// Get implements registry.Store.
func (s *Store) Get(ctx context.Context, key string) (registry.Item, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.client.Get(ctx, key)
	if err != nil {
		return registry.Item{}, fmt.Errorf("etcd: get %s: %w", key, err)
	}
	if len(r.Kvs) == 0 {
		return registry.Item{Key: key}, nil
	}
	return item(r.Kvs[0]), nil
}

// List implements registry.Store.
func (s *Store) List(ctx context.Context, prefix string) (registry.List, error) {
	ctx, cancel := context.WithTimeout(ctx, patience*s.timeout)
	defer cancel()
	r, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
	if err != nil {
		return registry.List{}, fmt.Errorf("etcd: list %s: %w", prefix, err)
	}
	l := registry.List{Rev: lease.Rev(r.Header.Revision)}
	for _, kv := range r.Kvs {
		l.Items = append(l.Items, item(kv))
	}
	return l, nil
}

func item(kv *mvccpb.KeyValue) registry.Item {
	return registry.Item{Key: string(kv.Key), Value: kv.Value, Rev: lease.Rev(kv.ModRevision), Bound: kv.Lease != 0}
}

// Swap implements registry.Store.
func (s *Store) Swap(ctx context.Context, key string, rev lease.Rev, value []byte) registry.Answer {
	return s.change(ctx, key, rev, clientv3.OpPut(key, string(value)))
}

// Delete implements registry.Store.
func (s *Store) Delete(ctx context.Context, key string, rev lease.Rev) registry.Answer {
	if rev == 0 {
		return registry.Answer{Outcome: registry.Refused} // there is nothing to delete
	}
	return s.change(ctx, key, rev, clientv3.OpDelete(key))
}

func (s *Store) change(ctx context.Context, key string, rev lease.Rev, op clientv3.Op) registry.Answer {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// A key that is not there has the modification revision 0.
	same := clientv3.Compare(clientv3.ModRevision(key), "=", int64(rev))
	r, err := s.client.Txn(ctx).If(same).Then(op).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return registry.Answer{Outcome: registry.Refused, Err: registry.ErrSessionLost}
	case err != nil:
		return registry.Answer{Err: fmt.Errorf("etcd: change %s: %w", key, err)}
	case !r.Succeeded:
		return registry.Answer{Outcome: registry.Refused}
	}
	return registry.Answer{Outcome: registry.Applied, Rev: lease.Rev(r.Header.Revision)}
}
