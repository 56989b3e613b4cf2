package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/cli"
	"github.com/underlay-cni/underlay/pkg/link"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		// Scripts leave out where their ledger is.
		"underlayctl": func() {
			args := append([]string{}, os.Args[1:]...)
			if work := os.Getenv("LEDGER"); work != "" {
				args = append(args, "--data-dir="+work, "--run-dir="+work+".run")
			}
			os.Exit(cli.Run(context.Background(), args, cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("LEDGER", filepath.Join(env.WorkDir, "ledger"))
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for each command under -race
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fill":   func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(fill(ts.Getenv("LEDGER"))) },
			"refuse": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(refuse(ts.Getenv("LEDGER"))) },
		},
	})
}

// Containers of the scripts: web is attached to two networks and alive, db is
// detached, api was answered for by somebody else, and job is gone without
// having been detached.
var (
	web = strings.Repeat("4f1c2a7d", 8)
	db  = strings.Repeat("90be11aa", 8)
	api = "api"
	job = "job"
)

// fill makes the ledger that the scripts look at, on 2026-01-02 at 03:04:05.
func fill(dir string) error {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l, err := ledger.Open(context.Background(), ledger.Options{
		DataDir: dir, RunDir: dir + ".run", Now: func() time.Time { return now },
	})
	if err != nil {
		return err
	}
	lan := ipam.Pool{Name: "lan", CoolDown: 30 * time.Second, Quarantine: 10 * time.Minute, Sets: []ipam.RangeSet{
		{rangeOf("192.0.2.0/24", "192.0.2.10", "192.0.2.19", "192.0.2.1")},
		{rangeOf("2001:db8::/64", "2001:db8::2", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8::1")},
	}}
	dmz := ipam.Pool{Name: "dmz", CoolDown: 30 * time.Second, Quarantine: 10 * time.Minute,
		Sticky: ipam.StickySoft, StickyFor: 24 * time.Hour,
		Sets: []ipam.RangeSet{{rangeOf("198.51.100.0/29", "198.51.100.2", "198.51.100.6", "198.51.100.1")}}}
	self := client.Identify("/proc/self/ns/net")
	alive := func(name string) ipam.Netns {
		return ipam.Netns{Path: "/run/netns/" + name, Dev: self.Dev, Inode: self.Inode}
	}
	made := 0
	allocate := func(container, ifName string, p ipam.Pool, n ipam.Netns, u ipam.Uses) error {
		made++
		_, err := l.Allocate(ipam.AllocateRequest{
			Attachment: ipam.Attachment{Network: p.Name, ContainerID: container, IfName: ifName}, Pool: p, Netns: n,
			Uses: u, MAC: fmt.Sprintf("02:00:00:00:00:%02x", made), Owner: "shop/" + ifName, Runtime: "containerd",
		}, nil)
		return err
	}
	release := func(container string, conflicts ...ipam.Conflict) error {
		_, err := l.Release(ipam.ReleaseRequest{
			Attachment: ipam.Attachment{Network: "lan", ContainerID: container, IfName: "eth0"}, Conflict: conflicts,
		})
		return err
	}
	for _, step := range []func() error{
		func() error {
			return allocate(web, "eth0", lan, alive("web"),
				ipam.Uses{Parent: "eth1", Port: link.Ipvlan{Mode: link.ModeL2, Flag: link.FlagPrivate}.Port()})
		},
		func() error {
			return allocate(web, "net1", dmz, alive("web"), ipam.Uses{
				Parent: "eth1", VLAN: 100, HostAccess: true, Port: link.Ipvlan{Mode: link.ModeL3, Flag: link.FlagBridge}.Port(),
			})
		},
		func() error { return allocate(db, "eth0", lan, alive("db"), ipam.Uses{}) },
		func() error { return allocate(api, "eth0", lan, alive("api"), ipam.Uses{}) },
		func() error {
			return allocate(job, "eth0", lan, ipam.Netns{Path: "/run/netns/job", Dev: self.Dev, Inode: 1}, ipam.Uses{})
		},
		func() error { return release(db) },
		func() error {
			return release(api, ipam.Conflict{Address: netip.MustParseAddr("192.0.2.12"), Reason: "02:00:00:00:00:99 answers for it"})
		},
		l.Close,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func rangeOf(subnet, first, last, gateway string) ipam.Range {
	gw := netip.MustParseAddr(gateway)
	return ipam.Range{
		Subnet: netip.MustParsePrefix(subnet), Gateway: gw,
		Interval: ipam.Interval{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)},
	}
}

// refuse puts a ledger there that is not the one this boot has used.
func refuse(dir string) error {
	other := dir + ".other"
	if err := fill(other); err != nil {
		return err
	}
	return os.Rename(filepath.Join(other, "ledger.db"), filepath.Join(dir, "ledger.db"))
}

// run runs a command line in this process.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, complaints strings.Builder
	status = cli.Run(t.Context(), args, cli.Stdio{In: strings.NewReader(""), Out: &out, Err: &complaints})
	return status, out.String(), complaints.String()
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ledger")
	if err := fill(dir); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		line string
		want int
	}{
		{"address list", 0},
		{"help", 0},
		{"address --help", 0},
		{"completion bash", 0},
		{"address show 192.0.2.19", 1},     // free
		{"pool show nowhere", 1},           // unknown
		{"ledger check", 1},                // has a leak
		{"address release 192.0.2.10", 1},  // in use
		{"", 2},                            // no noun
		{"adress list", 2},                 // unknown noun
		{"address", 2},                     // no verb
		{"address lost", 2},                // unknown verb
		{"address list all", 2},            // argument too many
		{"address show", 2},                // argument missing
		{"address show 192.0.2", 2},        // no address
		{"address list --stat held", 2},    // unknown flag
		{"address list --state helt", 2},   // bad value
		{"address list -o yaml", 2},        // bad format
		{"conf nerdctl lan", 2},            // flag missing
		{"source add web 02:00:00:00", 2},  // no MAC
		{"source list web extra-word", 2},  // argument too many
		{"ledger rebuild everything", 2},   // argument too many
		{"ledger rebuild --dry-run=no", 2}, // bad value
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			t.Parallel()
			status, _, complaints := run(t, append(strings.Fields(tt.line), "--data-dir="+dir, "--run-dir="+dir+".run")...)
			if status != tt.want {
				t.Errorf("status %d, want %d; stderr:\n%s", status, tt.want, complaints)
			}
			if (tt.want == 0) != (complaints == "") {
				t.Errorf("status %d with stderr %q", status, complaints)
			}
			if tt.want == 2 && !strings.Contains(complaints, "hint: ") {
				t.Errorf("no hint in %q", complaints)
			}
		})
	}
}

// A read makes neither folder nor file, and neither does a write.
func TestMissingLedgerIsNotMade(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"address list", "address release 192.0.2.10", "pool list", "ledger check", "ledger export", "attachment list", "ledger backup -", "conflict clear 192.0.2.10", "address history 192.0.2.10"} {
		dir := filepath.Join(t.TempDir(), "none")
		status, out, complaints := run(t, append(strings.Fields(line), "--data-dir="+dir, "--run-dir="+dir+".run")...)
		want := fmt.Sprintf("underlayctl: ledger in %q does not exist\nunderlayctl: hint: the first ADD makes it; --data-dir names another folder\n", dir)
		if diff := cmp.Diff(want, complaints); diff != "" || status != 1 || out != "" {
			t.Errorf("%s: status %d, stdout %q, stderr (-want +got):\n%s", line, status, out, diff)
		}
		if left, err := filepath.Glob(dir + "*"); err != nil || len(left) > 0 {
			t.Errorf("%s has made %v, %v", line, left, err)
		}
	}
}

func TestContainerByItsBeginning(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ledger")
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: dir, RunDir: dir + ".run"})
	if err != nil {
		t.Fatal(err)
	}
	pool := ipam.Pool{Name: "lan", Sets: []ipam.RangeSet{{rangeOf("192.0.2.0/24", "192.0.2.10", "192.0.2.19", "192.0.2.1")}}}
	for _, id := range []string{"job", "job-2", "web"} {
		at := ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"}
		if _, err := l.Allocate(ipam.AllocateRequest{Attachment: at, Pool: pool}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		"job":   "Container:  job\n",
		"job-":  "Container:  job-2\n",
		"w":     "Container:  web\n",
		"jo":    `"jo" may be any of the containers job, job-2`,
		"job-3": `the ledger knows no attachment of container "job-3"`,
	} {
		_, out, complaints := run(t, "attachment", "show", id, "--data-dir="+dir, "--run-dir="+dir+".run")
		if !strings.Contains(out+complaints, want) {
			t.Errorf("%s: want %q in:\n%s%s", id, want, out, complaints)
		}
	}
}

// A record that makes no sense is a finding; that the rest cannot be read for
// it is no reason to say nothing.
func TestCheckOfDamagedRecords(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ledger")
	if err := fill(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ledger.db")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.ReplaceAll(content, []byte("\x04held"), []byte("\x04hold"))
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, complaints := run(t, "ledger", "check", "--data-dir="+dir, "--run-dir="+dir+".run")
	if status != 1 || !strings.Contains(out, "record of address 192.0.2.10") || !strings.Contains(complaints, "the ledger is not sound") {
		t.Errorf("status %d\n%s%s", status, out, complaints)
	}
}
