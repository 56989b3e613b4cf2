// Package embedded runs one etcd server in this process, as a cluster of one
// member, for a small cluster whose nodes share the fate of one of them. Its
// users pay for the whole server in size and start-up; who has a cluster of
// their own links package etcd only.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Config of the server.
type Config struct {
	// DataDir holds the database; required, made with mode 0700.
	DataDir string
	// Listen is the address and port for clients; required. Port 0 is not
	// possible: etcd has to know its own address.
	Listen string
	// Advertise is the address and port that clients elsewhere use; default
	// Listen.
	Advertise string
	// CertFile and KeyFile are the server's, both or none; without them
	// anybody who reaches Listen can change the registry. ClientCAFile has
	// clients show certificates of that authority.
	CertFile, KeyFile, ClientCAFile string
	// Start is how long the server may take to be ready; default 60s.
	Start time.Duration
}

const (
	member = "underlay"
	// keep is for how long a watch that was broken off can go on where it was.
	keep = "1h"
	// quota of the database. Past it etcd takes no more changes; a registry
	// of 5,000 nodes is far below it.
	quota = 2 << 30
)

// Server is a server that runs.
type Server struct {
	etcd *embed.Etcd
	url  string
}

// Start starts the server and waits until it serves.
func Start(ctx context.Context, c Config) (_ *Server, err error) {
	cfg, client, err := c.etcd()
	if err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd: start on %s: %w", c.Listen, err)
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	wait := c.Start
	if wait == 0 {
		wait = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
		return &Server{e, client}, nil
	case err := <-e.Err():
		return nil, fmt.Errorf("embedded etcd: %w", err)
	case <-e.Server.StopNotify():
		return nil, errors.New("embedded etcd: it stopped at once")
	case <-ctx.Done():
		return nil, fmt.Errorf("embedded etcd: it is not ready: %w", context.Cause(ctx))
	}
}

// Endpoint is the URL that clients use.
func (s *Server) Endpoint() string { return s.url }

// Err tells of a server that has failed.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the server; what was acknowledged is on disk.
func (s *Server) Close() {
	s.etcd.Close()
	<-s.etcd.Server.StopNotify()
}

func (c Config) etcd() (*embed.Config, string, error) {
	if c.DataDir == "" || c.Listen == "" {
		return nil, "", errors.New("DataDir and Listen are required")
	}
	if (c.CertFile == "") != (c.KeyFile == "") || c.ClientCAFile != "" && c.CertFile == "" {
		return nil, "", errors.New("a certificate and its key go together, and a clients' authority with them")
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || port == "0" {
		return nil, "", fmt.Errorf("listen: %q is no address with a port", c.Listen)
	}
	scheme := "http"
	if c.CertFile != "" {
		scheme = "https"
	}
	advertise := c.Advertise
	if advertise == "" {
		advertise = c.Listen
	}
	cfg := embed.NewConfig()
	cfg.Name = member
	cfg.Dir = filepath.Clean(c.DataDir)
	cfg.ListenClientUrls = []url.URL{{Scheme: scheme, Host: c.Listen}}
	cfg.AdvertiseClientUrls = []url.URL{{Scheme: scheme, Host: advertise}}
	// A member that is alone listens for no peers; etcd wants a name for
	// itself all the same.
	cfg.ListenPeerUrls = nil
	cfg.InitialCluster = cfg.InitialClusterFromName(member)
	cfg.AutoCompactionMode = "periodic"
	cfg.AutoCompactionRetention = keep
	cfg.QuotaBackendBytes = quota
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	if c.CertFile != "" {
		cfg.ClientTLSInfo = transport.TLSInfo{
			CertFile: c.CertFile, KeyFile: c.KeyFile, TrustedCAFile: c.ClientCAFile, ClientCertAuth: c.ClientCAFile != "",
		}
		cfg.TlsMinVersion = "TLS1.2"
	}
	return cfg, scheme + "://" + advertise, nil
}
