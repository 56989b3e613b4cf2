package agent

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/etcd/embedded"
	"github.com/underlay-cni/underlay/pkg/agent/network"
)

func TestLoadConfig(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	far := &RegistryConfig{Etcd: &etcd.Config{Endpoints: []string{"https://192.0.2.1:2379"}}}
	tests := []struct {
		name, text string
		want       Config
		place, msg string // of the error
	}{
		{"empty", `{}`, Config{NodeName: host, DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir}, "", ""},
		{"all", `{"nodeName":"n1","dataDir":"/d","runDir":"/r","api":{"group":"underlay"}}`,
			Config{NodeName: "n1", DataDir: "/d", RunDir: "/r", APIGroup: "underlay"}, "", ""},
		{"runDir follows", `{"nodeName":"n1","dataDir":"/d"}`, Config{NodeName: "n1", DataDir: "/d", RunDir: "/run/underlay/4823e769"}, "", ""},
		{"misspelled", `{"nodename":"n1"}`, Config{}, "nodename", `did you mean "nodeName"?`},
		{"misspelled below", `{"api":{"grp":"x"}}`, Config{}, "api.grp", `did you mean "group"?`},
		{"misspelled on a line", "{\"api\":\n  {\"grp\":\"x\"}}", Config{}, "api.grp", "(line 2, column 4)"},
		{"no JSON", "{\n  \"dataDir\": \"/d\",\n}", Config{}, "", "(line 3, column 1)"},
		{"wrong type", `{"dataDir":7}`, Config{}, "dataDir", "number"},
		{"no object", `[]`, Config{}, "", "array"},
		{"nothing", ``, Config{}, "", "unexpected end"},
		{"relative", `{"dataDir":"d"}`, Config{}, "dataDir", "not an absolute path"},
		{"node with a slash", `{"nodeName":"a/b"}`, Config{}, "nodeName", "slashes"},
		{"node without a name that others can read", `{"nodeName":"näme","registry":{"etcd":{"endpoints":["https://192.0.2.1:2379"]}}}`, Config{}, "nodeName", "may hold letters"},
		{"no registry", `{"registry":{}}`, Config{}, "registry", "has to be one of"},
		{"two registries", `{"registry":{"etcd":{},"embedded":{}}}`, Config{}, "registry", "has to be one of"},
		{"etcd nowhere", `{"registry":{"etcd":{}}}`, Config{}, "registry.etcd.endpoints", "is missing"},
		{"etcd without a scheme", `{"registry":{"etcd":{"endpoints":["http://192.0.2.1:2379","192.0.2.1:2379"]}}}`, Config{}, "registry.etcd.endpoints[1]", "no URL"},
		{"half a certificate", `{"registry":{"etcd":{"endpoints":["https://192.0.2.1:2379"],"certFile":"x"}}}`, Config{}, "registry.etcd.certFile", "go together"},
		{"a user without a password", `{"registry":{"etcd":{"endpoints":["https://192.0.2.1:2379"],"username":"x"}}}`, Config{}, "registry.etcd.username", "go together"},
		{"etcd", `{"nodeName":"n1","registry":{"etcd":{"endpoints":["https://192.0.2.1:2379"],"caFile":"ca","certFile":"c","keyFile":"k"}}}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Registry: &RegistryConfig{
				Etcd: &etcd.Config{Endpoints: []string{"https://192.0.2.1:2379"}, CAFile: "ca", CertFile: "c", KeyFile: "k"}}}, "", ""},
		{"embedded in nothing", `{"registry":{"embedded":{"listen":"192.0.2.1:2379"}}}`, Config{}, "registry.embedded.dataDir", "absolute"},
		{"embedded everywhere", `{"registry":{"embedded":{"dataDir":"/e","listen":":2379"}}}`, Config{}, "registry.embedded.listen", "no address"},
		{"embedded in half secret", `{"registry":{"embedded":{"dataDir":"/e","listen":"192.0.2.1:2379","tls":{"caFile":"ca"}}}}`, Config{}, "registry.embedded.tls", "needs caFile"},
		{"embedded", `{"nodeName":"n1","registry":{"embedded":{"dataDir":"/e","listen":"192.0.2.1:2379","tls":{"caFile":"ca","certFile":"c","keyFile":"k"}}}}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Registry: &RegistryConfig{
				Embedded: &embedded.Config{DataDir: "/e", Listen: "192.0.2.1:2379", CertFile: "c", KeyFile: "k", ClientCAFile: "ca"}}}, "", ""},
		{"no networks", `{"nodeName":"n1","networks":[]}`, Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Networks: []string{}}, "", ""},
		{"networks", `{"nodeName":"n1","networks":["pods"],"fixForwardDrop":true}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Networks: []string{"pods"}, FixForwardDrop: true}, "", ""},
		{"a network without a name", `{"networks":["pods",""]}`, Config{}, "networks[1]", "characters long"},
		{"no parents", `{"nodeName":"n1","parents":{}}`, Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir}, "", ""},
		{"parents", `{"nodeName":"n1","parents":{"lan":{"name":"eth1"},"wan":{"match":"eth[12]"},"up":{"reach":"::ffff:192.0.2.1"}}}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Parents: map[string]network.Parent{
				"lan": {Name: "eth1"}, "wan": {Match: "eth[12]"}, "up": {Reach: netip.MustParseAddr("192.0.2.1")}}}, "", ""},
		{"a parent of two kinds", `{"parents":{"lan":{"name":"eth1","match":"eth.*"}}}`, Config{}, "parents.lan", "has to be one of"},
		{"a parent of no kind", `{"parents":{"lan":{}}}`, Config{}, "parents.lan", "has to be one of"},
		{"a parent misspelled", `{"parents":{"lan":{"nmae":"eth1"}}}`, Config{}, "parents.lan.nmae", `did you mean "name"?`},
		{"a parent without a name for people", `{"parents":{"":{"name":"eth1"}}}`, Config{}, "parents.", "characters long"},
		{"no expression", `{"parents":{"lan":{"match":"eth["}}}`, Config{}, "parents.lan.match", "no regular expression"},
		{"no address", `{"parents":{"lan":{"reach":"192.0.2"}}}`, Config{}, "parents.lan.reach", "is not an IP address"},
		{"containerd", `{"nodeName":"n1","containerd":"/run/containerd/containerd.sock"}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Containerd: "/run/containerd/containerd.sock"}, "", ""},
		{"no containerd", `{"nodeName":"n1","containerd":""}`, Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir}, "", ""},
		{"containerd somewhere", `{"containerd":"containerd.sock"}`, Config{}, "containerd", "absolute"},
		{"no subnetFile", `{"nodeName":"n1","subnetFile":"","networks":["pods"]}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Networks: []string{"pods"}}, "", ""},
		{"subnetFile of the only network", `{"nodeName":"n1","subnetFile":"/run/flannel/subnet.env","networks":["pods"],"registry":{"etcd":{"endpoints":["https://192.0.2.1:2379"]}}}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Networks: []string{"pods"}, Registry: far,
				SubnetFile: &network.SubnetFile{Path: "/run/flannel/subnet.env", Network: "pods"}}, "", ""},
		{"subnetFile", `{"nodeName":"n1","subnetFile":{"path":"/run/flannel/subnet.env","network":"pods","ipMasq":true},"registry":{"etcd":{"endpoints":["https://192.0.2.1:2379"]}}}`,
			Config{NodeName: "n1", DataDir: ipam.DefaultDataDir, RunDir: ipam.DefaultRunDir, Registry: far,
				SubnetFile: &network.SubnetFile{Path: "/run/flannel/subnet.env", Network: "pods", IPMasq: true}}, "", ""},
		{"subnetFile of which network", `{"subnetFile":"/run/flannel/subnet.env"}`, Config{}, "subnetFile", `List exactly one in "networks"`},
		{"subnetFile of one of two", `{"subnetFile":"/run/flannel/subnet.env","networks":["a","b"]}`, Config{}, "subnetFile", `List exactly one in "networks"`},
		{"subnetFile of another network", `{"subnetFile":{"path":"/s","network":"x"},"networks":["a","b"]}`, Config{}, "subnetFile.network", `does not follow "x"`},
		{"subnetFile of no network", `{"subnetFile":{"path":"/s"}}`, Config{}, "subnetFile.network", "characters long"},
		{"subnetFile nowhere", `{"subnetFile":{"network":"pods"}}`, Config{}, "subnetFile.path", "is missing"},
		{"subnetFile in a folder that may be any", `{"subnetFile":{"path":"subnet.env","network":"pods"}}`, Config{}, "subnetFile.path", "absolute"},
		{"subnetFile misspelled", `{"subnetFile":{"file":"/s"}}`, Config{}, "subnetFile.file", "unknown"},
		{"subnetFile of the wrong type", `{"subnetFile":7}`, Config{}, "subnetFile", "number"},
		{"subnetFile on a node of its own", `{"subnetFile":"/s","networks":["pods"]}`, Config{}, "subnetFile", `needs "registry"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := LoadConfig(strings.NewReader(tt.text))
			if tt.msg != "" {
				var field *ipam.FieldError
				if !errors.As(err, &field) || field.Place != tt.place || !strings.Contains(field.Msg, tt.msg) {
					t.Errorf("error %v, want %q at %q", err, tt.msg, tt.place)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestExposed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		registry string
		want     string
	}{
		{`{"embedded":{"dataDir":"/e","listen":"192.0.2.1:2379"}}`, "whoever reaches 192.0.2.1:2379"},
		{`{"embedded":{"dataDir":"/e","listen":"0.0.0.0:2379"}}`, "whoever reaches 0.0.0.0:2379"},
		{`{"embedded":{"dataDir":"/e","listen":"127.0.0.1:2379"}}`, ""},
		{`{"embedded":{"dataDir":"/e","listen":"[::1]:2379"}}`, ""},
		{`{"embedded":{"dataDir":"/e","listen":"192.0.2.1:2379","tls":{"caFile":"ca","certFile":"c","keyFile":"k"}}}`, ""},
		{`{"etcd":{"endpoints":["http://192.0.2.1:2379"]}}`, ""},
		{`{"etcd":{"endpoints":["https://192.0.2.1:2379","http://192.0.2.2:2379"],"username":"u","password":"p"}}`, "http://192.0.2.2:2379 in the clear"},
		{`{"etcd":{"endpoints":["https://192.0.2.1:2379"],"username":"u","password":"p"}}`, ""},
	}
	for _, tt := range tests {
		c, err := LoadConfig(strings.NewReader(`{"nodeName":"n1","registry":` + tt.registry + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Registry.exposed(); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.registry, got, tt.want)
		}
	}
}

func FuzzLoadConfig(f *testing.F) {
	f.Add(`{"nodeName":"n1","dataDir":"/d","runDir":"/r","api":{"group":"underlay"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := LoadConfig(strings.NewReader(text))
		if err == nil && (c.NodeName == "" || !filepath.IsAbs(c.DataDir) || !filepath.IsAbs(c.RunDir)) {
			t.Errorf("%q: %+v", text, c)
		}
	})
}

func TestRun(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"subnetFile":{"path":"x"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(bad)
	secret := filepath.Join(dir, "secret.json")
	if err := os.WriteFile(secret, []byte(`{"registry":{"etcd":{"endpoints":["https://192.0.2.1:2379"],"caFile":"ca.pem","certFile":"/nosuch.pem","keyFile":"n.key"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--version"}, 0, "underlayd "},
		{[]string{"-h"}, 0, "-config file"},
		{[]string{"--nosuch"}, 2, "nosuch"},
		{[]string{"start"}, 2, `unknown argument "start"`},
		{[]string{"--check", "--config", bad}, 2, "bad.json: subnetFile.path: \"x\" is not"},
		{[]string{"--check", "--config", secret}, 2, "secret.json: registry.etcd.certFile: open /nosuch.pem"},
		{[]string{"--config", "/nosuch/file"}, 2, "/nosuch/file"},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		if got := Run(t.Context(), tt.args, Stdio{Out: &out, Err: &out}); got != tt.status || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: status %d, want %d with %q:\n%s", tt.args, got, tt.status, tt.want, &out)
		}
	}
}

func TestNotify(t *testing.T) {
	if err := notify("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
}
