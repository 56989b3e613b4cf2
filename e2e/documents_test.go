package e2e_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tailscale/hujson"
	"sigs.k8s.io/yaml"

	"github.com/underlay-cni/underlay/e2e/binaries"
)

// TestSamples runs every file under conf/: STATUS says that the host can take
// it, ADD and DEL that it works.
func TestSamples(t *testing.T) {
	root, err := binaries.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var samples int
	err = filepath.WalkDir(filepath.Join(root, "conf"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		samples++
		name, _ := filepath.Rel(root, path)
		t.Run(name, func(t *testing.T) { runConf(t, readSample(t, path)) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if samples < 10 {
		t.Errorf("%d samples found, want at least 10", samples)
	}
}

// readSample returns the network configuration in a file, by its extension.
func readSample(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch filepath.Ext(path) {
	case ".conflist":
		return string(data)
	case ".jsonc":
		plain, err := hujson.Standardize(data)
		if err != nil {
			t.Fatal(err)
		}
		return string(plain)
	case ".yaml":
		var nad struct {
			Kind string
			Spec struct{ Config string }
		}
		if err := yaml.Unmarshal(data, &nad); err != nil || nad.Kind != "NetworkAttachmentDefinition" {
			t.Fatalf("kind %q, %v", nad.Kind, err)
		}
		return nad.Spec.Config
	}
	t.Fatalf("no test knows how to load %s", path)
	return ""
}

var jsonBlock = regexp.MustCompile("(?s)```json\n(.*?)```")

// TestReadmeExamples runs the JSON examples of the plugins' READMEs.
func TestReadmeExamples(t *testing.T) {
	root, err := binaries.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	readmes, err := filepath.Glob(filepath.Join(root, "plugins", "*", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	readmes = append(readmes, filepath.Join(root, "ipam", "plugin", "README.md"))
	for _, path := range readmes {
		name, _ := filepath.Rel(root, path)
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			blocks := jsonBlock.FindAllStringSubmatch(string(data), -1)
			if len(blocks) == 0 {
				t.Fatal("no example")
			}
			for i, b := range blocks {
				t.Run(fmt.Sprint(i), func(t *testing.T) { runConf(t, b[1]) })
			}
		})
	}
}

// runConf attaches a container with a configuration and detaches it, on a
// host whose parent is eth1 as in all examples.
func runConf(t *testing.T, conf string) {
	t.Helper()
	// The places that the documents name are those of a real host; a lab host
	// has its own.
	var wire map[string]any
	if err := json.Unmarshal([]byte(conf), &wire); err != nil {
		t.Fatal(err)
	}
	delete(wire, "dataDir")
	delete(wire, "runDir")
	plain, err := json.Marshal(wire)
	if err != nil {
		t.Fatal(err)
	}
	host := newBed(t).h1
	c, err := host.AddContainer(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	cni := host.CNI(ours, reference)
	if strings.Contains(conf, `"1.1.0"`) {
		if err := cni.Status(t.Context(), string(plain)); err != nil {
			t.Fatalf("STATUS: %v", err)
		}
	}
	res, err := cni.Add(t.Context(), string(plain), c.Runtime())
	if err != nil {
		t.Fatalf("ADD: %v", err)
	}
	if len(res.IPs) == 0 {
		t.Error("ADD returned no address")
	}
	if err := cni.Check(t.Context(), string(plain), c.Runtime()); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if err := cni.Del(t.Context(), string(plain), c.Runtime()); err != nil {
		t.Errorf("DEL: %v", err)
	}
}
