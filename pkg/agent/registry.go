package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/etcd/embedded"
)

// RegistryConfig says where the registry is: exactly one of both is set.
type RegistryConfig struct {
	// Etcd is a cluster of the user's own, or the one embedded in another
	// agent.
	Etcd *etcd.Config
	// Embedded is run by this agent.
	Embedded *embedded.Config
}

type registryWire struct {
	Etcd     json.RawMessage `json:"etcd"`
	Embedded json.RawMessage `json:"embedded"`
}

type etcdWire struct {
	Endpoints []string `json:"endpoints"`
	CAFile    string   `json:"caFile"`
	CertFile  string   `json:"certFile"`
	KeyFile   string   `json:"keyFile"`
	Username  string   `json:"username"`
	Password  string   `json:"password"`
}

type embeddedWire struct {
	DataDir   string          `json:"dataDir"`
	Listen    string          `json:"listen"`
	Advertise string          `json:"advertise"`
	TLS       json.RawMessage `json:"tls"`
}

type tlsWire struct {
	CAFile   string `json:"caFile"`
	CertFile string `json:"certFile"`
	KeyFile  string `json:"keyFile"`
}

// loadRegistry reads the value of the key registry; nil where there is none.
func loadRegistry(text json.RawMessage) (*RegistryConfig, error) {
	if text == nil {
		return nil, nil
	}
	var w registryWire
	if err := ipam.DecodeObject(text, "registry", &w); err != nil {
		return nil, err
	}
	switch {
	case (w.Etcd == nil) == (w.Embedded == nil):
		return nil, &ipam.FieldError{Place: "registry", Msg: `has to be one of {"etcd": {...}} and {"embedded": {...}}`}
	case w.Etcd != nil:
		c, err := loadEtcd(w.Etcd)
		return &RegistryConfig{Etcd: c}, err
	default:
		c, err := loadEmbedded(w.Embedded)
		return &RegistryConfig{Embedded: c}, err
	}
}

func loadEtcd(text json.RawMessage) (*etcd.Config, error) {
	const at = "registry.etcd."
	var w etcdWire
	if err := ipam.DecodeObject(text, "registry.etcd", &w); err != nil {
		return nil, err
	}
	if len(w.Endpoints) == 0 {
		return nil, &ipam.FieldError{Place: at + "endpoints", Msg: `is missing: give URLs such as "https://192.0.2.10:2379"`}
	}
	for i, e := range w.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Path != "" {
			return nil, &ipam.FieldError{Place: fmt.Sprintf("%sendpoints[%d]", at, i), Msg: fmt.Sprintf(`%q is no URL with scheme and port, such as "https://192.0.2.10:2379"`, e)}
		}
	}
	if err := together(at, w.CertFile, w.KeyFile); err != nil {
		return nil, err
	}
	if (w.Username == "") != (w.Password == "") {
		return nil, &ipam.FieldError{Place: at + "username", Msg: "username and password go together"}
	}
	return &etcd.Config{Endpoints: w.Endpoints, CAFile: w.CAFile, CertFile: w.CertFile, KeyFile: w.KeyFile, Username: w.Username, Password: w.Password}, nil
}

func loadEmbedded(text json.RawMessage) (*embedded.Config, error) {
	const at = "registry.embedded."
	var w embeddedWire
	if err := ipam.DecodeObject(text, "registry.embedded", &w); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(w.DataDir) {
		return nil, &ipam.FieldError{Place: at + "dataDir", Msg: fmt.Sprintf("%q is not an absolute path", w.DataDir)}
	}
	for key, addr := range map[string]string{"listen": w.Listen, "advertise": w.Advertise} {
		if addr == "" && key == "advertise" {
			continue
		}
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" || port == "0" {
			return nil, &ipam.FieldError{Place: at + key, Msg: fmt.Sprintf(`%q is no address with a port, such as "192.0.2.10:2379"`, addr)}
		}
	}
	c := &embedded.Config{DataDir: w.DataDir, Listen: w.Listen, Advertise: w.Advertise}
	if w.TLS != nil {
		var t tlsWire
		if err := ipam.DecodeObject(w.TLS, at+"tls", &t); err != nil {
			return nil, err
		}
		if err := together(at+"tls.", t.CertFile, t.KeyFile); err != nil {
			return nil, err
		}
		if t.CertFile == "" || t.CAFile == "" {
			return nil, &ipam.FieldError{Place: at + "tls", Msg: "needs caFile, certFile and keyFile"}
		}
		c.CertFile, c.KeyFile, c.ClientCAFile = t.CertFile, t.KeyFile, t.CAFile
	}
	return c, nil
}

// files are those that the registry's configuration names, by key.
func (c *RegistryConfig) files() map[string]*string {
	switch {
	case c == nil:
		return nil
	case c.Etcd != nil:
		const at = "registry.etcd."
		return map[string]*string{at + "caFile": &c.Etcd.CAFile, at + "certFile": &c.Etcd.CertFile, at + "keyFile": &c.Etcd.KeyFile}
	}
	const at = "registry.embedded.tls."
	e := c.Embedded
	return map[string]*string{at + "caFile": &e.ClientCAFile, at + "certFile": &e.CertFile, at + "keyFile": &e.KeyFile}
}

// beside has relative names be of files in a folder, the configuration's.
func (c *RegistryConfig) beside(dir string) {
	for _, name := range c.files() {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(dir, *name)
		}
	}
}

// readable reports the first file, by key, that is not.
func (c *RegistryConfig) readable() error {
	files := c.files()
	for _, key := range slices.Sorted(maps.Keys(files)) {
		if *files[key] == "" {
			continue
		}
		if _, err := os.ReadFile(*files[key]); err != nil {
			return &ipam.FieldError{Place: key, Msg: err.Error()}
		}
	}
	return nil
}

func together(at, cert, key string) error {
	if (cert == "") != (key == "") {
		return &ipam.FieldError{Place: at + "certFile", Msg: "certFile and keyFile go together"}
	}
	return nil
}

// exposed says what others on the network may do to the registry or learn of it,
// for want of TLS; "" where there is nothing.
func (c *RegistryConfig) exposed() string {
	if e := c.Embedded; e != nil && e.CertFile == "" && !loopback(e.Listen) {
		return "registry.embedded has no tls: whoever reaches " + e.Listen + " can change which node has which address"
	}
	if c.Etcd == nil || c.Etcd.Password == "" {
		return ""
	}
	for _, e := range c.Etcd.Endpoints {
		if u, err := url.Parse(e); err == nil && u.Scheme == "http" && !loopback(u.Host) {
			return "registry.etcd.endpoints: the password goes to " + e + " in the clear"
		}
	}
	return ""
}

func loopback(address string) bool {
	a, err := netip.ParseAddrPort(address)
	return err == nil && a.Addr().IsLoopback()
}

// open starts the embedded server, if it is to be, and connects.
func (c *RegistryConfig) open(ctx context.Context) (_ registry.Store, failed <-chan error, end func(), err error) {
	client, stop := c.Etcd, func() {}
	if e := c.Embedded; e != nil {
		server, err := embedded.Start(ctx, *e)
		if err != nil {
			return nil, nil, nil, err
		}
		failed, stop = server.Err(), server.Close
		// The server's own certificate serves its own client.
		client = &etcd.Config{Endpoints: []string{server.Endpoint()}, CAFile: e.ClientCAFile, CertFile: e.CertFile, KeyFile: e.KeyFile}
	}
	store, err := etcd.New(*client)
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return store, failed, func() {
		_ = store.Close() // nothing is under way any more
		stop()
	}, nil
}
