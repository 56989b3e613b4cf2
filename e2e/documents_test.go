package e2e_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tailscale/hujson"
	"sigs.k8s.io/yaml"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/link/linktest"
)

// TestSamples loads every file under conf/, and runs those that any kernel can;
// for the others see TestSamplesOfGuest.
func TestSamples(t *testing.T) {
	eachSample(t, func(t *testing.T, conf string) {
		if wantLoads(t, conf); !ofGuest(conf) {
			runConf(t, conf)
		}
	})
}

func TestSamplesOfGuest(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	eachSample(t, func(t *testing.T, conf string) {
		if ofGuest(conf) {
			runConf(t, conf)
		}
	})
}

// eachSample calls do for the configurations in conf/.
func eachSample(t *testing.T, do func(*testing.T, string)) {
	t.Helper()
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	var samples int
	err = filepath.WalkDir(filepath.Join(root, "conf"), func(path string, d fs.DirEntry, err error) error {
		// See TestAgentSamples, and TestReference of ipam/registry/record.
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "underlayd") || strings.HasPrefix(d.Name(), "cluster-") {
			return err
		}
		// See TestChainsTold, TestOperations, TestAlerts, e2e/documents and e2e/repo.
		if filepath.Ext(path) == ".md" || slices.Contains([]string{"prometheus", "debian"}, filepath.Base(filepath.Dir(path))) {
			return nil
		}
		if filepath.Ext(path) == ".json" { // see lendSample, and TestSampleObjects
			return nil
		}
		samples++
		name, _ := filepath.Rel(root, path)
		t.Run(name, func(t *testing.T) { do(t, readSample(t, path)) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if samples < 24 {
		t.Errorf("%d samples found, want at least 24", samples)
	}
}

// ofGuest says whether a configuration needs links that not every kernel has.
func ofGuest(conf string) bool {
	return regexp.MustCompile(`"type": *"ipvlan"|"vlan": *[1-9]|"master": *"[^"]*\.[0-9]+"`).MatchString(conf)
}

// TestTenants: the two tenants of the samples are on one parent, each on a VLAN
// of its own, whose sub-interface is gone when they are.
func TestTenants(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	h := oneHost(t)
	calls := h.CNI(ours)
	del := func(string) {}
	for _, tenant := range []struct{ name, kind, carrier, addr string }{
		{"red", "macvlan", "eth1.100", "192.0.2.100/24"},
		{"blue", "ipvlan", "eth1.200", "198.51.100.100/24"},
	} {
		conf := readSample(t, filepath.Join(root, "conf", "tenants", tenant.name+".conflist"))
		box, rt := container(t, h, tenant.name)
		if _, err := calls.Add(t.Context(), conf, rt); err != nil {
			t.Fatal(err)
		}
		eth0 := mustLink(t, box, "eth0")
		if eth0.Kind != tenant.kind || len(eth0.Addrs) == 0 || eth0.Addrs[0].String() != tenant.addr {
			t.Errorf("%s has %+v", tenant.name, eth0)
		}
		mustLink(t, h.Namespace, tenant.carrier)
		others := del
		del = func(when string) {
			if err := calls.Del(t.Context(), conf, rt); err != nil {
				t.Error(err)
			}
			if _, there, err := h.Link(t.Context(), tenant.carrier); there || err != nil {
				t.Errorf("%s: %s is left: %v, %v", when, tenant.carrier, there, err)
			}
			others(when)
		}
	}
	del("after both")
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

// What underlayctl writes loads, and runs, like a sample.
func TestWrittenConfs(t *testing.T) {
	eachWritten(t, func(t *testing.T, conf string) {
		if wantLoads(t, conf); !ofGuest(conf) {
			runConf(t, conf)
		}
	})
}

func TestWrittenConfsOfGuest(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	eachWritten(t, func(t *testing.T, conf string) {
		if ofGuest(conf) {
			runConf(t, conf)
		}
	})
}

func eachWritten(t *testing.T, do func(*testing.T, string)) {
	t.Helper()
	for _, options := range []string{
		"nerdctl lan --host-access",
		"containerd lan --mode private --ip6-subnet 2001:db8::/64",
		"containerd lan --vlan 100",
		"nerdctl lan --type ipvlan --host-access",
		"containerd lan --type ipvlan --flag private --vlan 100 --ip6-subnet 2001:db8::/64",
		"containerd lan --type ipvlan --mode l3s --flag vepa",
		"nerdctl lan --type ipvlan --mode l3 --host-access --ip6-subnet 2001:db8::/64",
	} {
		t.Run(options, func(t *testing.T) {
			args := append([]string{"conf"}, strings.Fields(options)...)
			args = append(args, "--master", lab.Parent, "--subnet", "192.0.2.0/24", "--range-start", "192.0.2.100")
			conf, err := exec.CommandContext(t.Context(), filepath.Join(ours, "underlayctl"), args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			do(t, string(conf))
		})
	}
}

var jsonBlock = regexp.MustCompile("(?s)```json\n(.*?)```")

// TestReadmeExamples runs the JSON examples of the plugins' READMEs, as
// TestSamples does.
func TestReadmeExamples(t *testing.T) {
	eachExample(t, func(t *testing.T, conf string) {
		if wantLoads(t, conf); !ofGuest(conf) {
			runConf(t, conf)
		}
	})
}

func TestReadmeExamplesOfGuest(t *testing.T) {
	linktest.Need(t, "ipvlan", "vlan")
	eachExample(t, func(t *testing.T, conf string) {
		if ofGuest(conf) {
			runConf(t, conf)
		}
	})
}

func eachExample(t *testing.T, do func(*testing.T, string)) {
	t.Helper()
	root, err := binaries.Root()
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
				t.Run(fmt.Sprint(i), func(t *testing.T) { do(t, b[1]) })
			}
		})
	}
}

// plain is a configuration without the places that the documents name, which
// are those of a real host: a lab host has its own. More keys are put in.
func plain(t *testing.T, conf string, more keys) string {
	t.Helper()
	var wire keys
	if err := json.Unmarshal([]byte(conf), &wire); err != nil {
		t.Fatal(err)
	}
	delete(wire, "dataDir")
	delete(wire, "runDir")
	maps.Copy(wire, more)
	text, err := json.Marshal(wire)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// wantLoads: STATUS, which came with version 1.1.0, finds nothing wrong with a
// configuration on a host whose parent is eth1 as in all examples.
func wantLoads(t *testing.T, conf string) {
	t.Helper()
	conf = plain(t, conf, keys{"cniVersion": "1.1.0"})
	host := newBed(t).h1
	lendSample(t, host, conf)
	if err := host.CNI(ours, reference).Status(t.Context(), conf); err != nil {
		t.Errorf("STATUS: %v", err)
	}
}

// runConf attaches a container with a configuration and detaches it, on such a
// host.
func runConf(t *testing.T, conf string) {
	t.Helper()
	conf = plain(t, conf, nil)
	host := newBed(t).h1
	lendSample(t, host, conf)
	c, err := host.AddContainer(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	cni := host.CNI(ours, reference)
	cni.Stderr = t.Output() // sbr tells all it does
	res, err := cni.Add(t.Context(), conf, c.Runtime())
	if err != nil {
		t.Fatalf("ADD: %v", err)
	}
	if len(res.IPs) == 0 {
		t.Error("ADD returned no address")
	}
	if err := cni.Check(t.Context(), conf, c.Runtime()); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if err := cni.Del(t.Context(), conf, c.Runtime()); err != nil {
		t.Errorf("DEL: %v", err)
	}
}
