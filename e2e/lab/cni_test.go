package lab

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// teller is a plugin that writes down how it was called and in which network
// namespace it ran.
const teller = `#!/bin/sh
{ echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS $TOLD $(readlink /proc/self/ns/net)"; cat; echo; } >>"$LOG"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.7/24"}]}' ;;
esac
`

func TestCNI(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h := host(t, Test(t), "h1")
	c, err := h.AddContainer(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "teller"), []byte(teller), 0o700); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "log")
	cni := h.CNI(dir)
	cni.Env = []string{"LOG=" + log, "TOLD=secret"}
	rt := c.Runtime()
	rt.Args = [][2]string{{"K", "V"}}
	rt.CapabilityArgs = map[string]any{"ips": []string{"192.0.2.7/24"}}

	const list = `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"teller","capabilities":{"ips":true},"ipam":{"type":"host-local"}}]}`
	result, err := cni.Add(ctx, list, rt)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.IPs) != 1 || result.IPs[0].Address.String() != "192.0.2.7/24" {
		t.Errorf("result %v", result)
	}
	if err := cni.Check(ctx, list, rt); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := cni.GC(ctx, list, types.GCAttachment{ContainerID: c.ID, IfName: "eth0"}); err != nil {
		t.Errorf("gc: %v", err)
	}
	if err := cni.Status(ctx, list); err != nil {
		t.Errorf("status: %v", err)
	}
	rt.NetNS = ""
	if err := cni.Del(ctx, list, rt); err != nil {
		t.Errorf("del: %v", err)
	}

	there, err := h.Exec(ctx, "readlink", "/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var verbs []string
	for i := 0; i+1 < len(lines); i += 2 {
		verb, _, _ := strings.Cut(lines[i], " ")
		verbs = append(verbs, verb)
		if !strings.HasSuffix(lines[i], " secret "+strings.TrimSpace(there)) {
			t.Errorf("%s ran elsewhere than in %s or without its environment", lines[i], there)
		}
	}
	if diff := cmp.Diff([]string{"ADD", "CHECK", "GC", "STATUS", "DEL"}, verbs); diff != "" {
		t.Errorf("verbs (-want +got):\n%s", diff)
	}
	if want := "ADD " + c.ID + " eth0 K=V "; !strings.HasPrefix(lines[0], want) {
		t.Errorf("called with %q, want %q", lines[0], want)
	}
	want := map[string]any{
		"cniVersion": "1.1.0", "name": "n", "type": "teller",
		"capabilities":  map[string]any{"ips": true},
		"dataDir":       h.DataDir,
		"runDir":        h.RunDir,
		"ipam":          map[string]any{"type": "host-local", "dataDir": h.DataDir},
		"runtimeConfig": map[string]any{"ips": []any{"192.0.2.7/24"}},
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(lines[1]), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stdin of ADD (-want +got):\n%s", diff)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	h := &Host{DataDir: "/d", RunDir: "/r"}
	tests := []struct {
		name, conf string
		want       string // the first plugin, or part of the error
		fails      bool
	}{
		{
			name: "single plugin",
			conf: `{"cniVersion":"1.0.0","name":"n","type":"macvlan"}`,
			want: `{"cniVersion":"1.0.0","dataDir":"/d","name":"n","runDir":"/r","type":"macvlan"}`,
		},
		{
			name: "no version",
			conf: `{"name":"n","type":"macvlan","runDir":"/r"}`,
			want: `{"dataDir":"/d","name":"n","runDir":"/r","type":"macvlan"}`,
		},
		{
			name: "its own folders",
			conf: `{"name":"n","plugins":[{"type":"macvlan","dataDir":"/x","runDir":"/y","ipam":{"type":"host-local","dataDir":"/z"}}]}`,
			want: `{"dataDir":"/x","ipam":{"dataDir":"/z","type":"host-local"},"runDir":"/y","type":"macvlan"}`,
		},
		{name: "no JSON", conf: `{`, want: "network configuration: unexpected end", fails: true},
		{name: "no object", conf: `{"name":"n","plugins":[7]}`, want: "plugin 7 is no object", fails: true},
		{name: "no name", conf: `{"type":"macvlan"}`, want: "name", fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list, err := h.load(tt.conf)
			if tt.fails {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(list.Plugins[0].Bytes)); diff != "" {
				t.Errorf("plugin (-want +got):\n%s", diff)
			}
		})
	}
}
