package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
)

// faultyBuild builds our programs with the fault points of pkg/fault in, once
// for all tests. The folder goes with that of the others.
var faultyBuild = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(filepath.Dir(ours), "faulty")
	return dir, binaries.Ours(context.Background(), dir, "TAGS=faultpoint")
})

// faulty is the folder of our programs with fault points.
func faulty(t *testing.T) string {
	t.Helper()
	dir, err := faultyBuild()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// fault is a point to die at.
type fault struct {
	point string
	at    string // what UNDERLAY_FAULT calls it
}

func (f fault) String() string {
	if f.at == f.point {
		return f.point
	}
	return f.point + " " + f.at
}

func (f fault) env() string { return "UNDERLAY_FAULT=" + f.at }

// callWith is an ADD or a DEL through libcni by the plugins in bin, with one
// more variable in their environment. It returns the addresses of an ADD.
func callWith(ctx context.Context, h *lab.Host, bin, env, verb, conf string, rt *libcni.RuntimeConf) ([]netip.Addr, error) {
	cni := h.CNI(bin, reference)
	cni.Env = []string{env}
	if verb == "DEL" {
		return nil, cni.Del(ctx, conf, rt)
	}
	result, err := cni.Add(ctx, conf, rt)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

// killed: the plugin died by SIGKILL, which libcni tells in words alone.
func killed(err error) bool { return err != nil && strings.Contains(err.Error(), "signal: killed") }

// silenced: the plugin did not come to say an error of its own; all of these
// have a code.
func silenced(err error) bool {
	var told *types.Error
	return errors.As(err, &told) && told.Code == 0
}

// faults are the points that a call goes past which succeeds, or fails. A point
// is called by its name, since numbers shift where a plugin does two things at
// once; only one that comes again has nothing but its number.
func faults(t *testing.T, h *lab.Host, verb, conf string, rt *libcni.RuntimeConf, fails bool) []fault {
	t.Helper()
	list := filepath.Join(t.TempDir(), "points")
	_, err := callWith(t.Context(), h, faulty(t), "UNDERLAY_FAULT_LIST="+list, verb, conf, rt)
	if (err != nil) != fails {
		t.Fatalf("%s %s: error %v, want one: %v", verb, rt.ContainerID, err, fails)
	}
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(b))
	faults := make([]fault, len(points))
	for i, point := range points {
		faults[i] = fault{point: point, at: point}
		if slices.Contains(points[:i], point) {
			faults[i].at = fmt.Sprintf("#%d", i+1)
		}
	}
	return faults
}

// tally counts kills by point.
type tally struct {
	mu    sync.Mutex
	kills map[string]int
}

func (k *tally) add(f fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kills == nil {
		k.kills = make(map[string]int)
	}
	k.kills[f.point]++
}

func (k *tally) String() string {
	var all []string
	for _, point := range slices.Sorted(maps.Keys(k.kills)) {
		all = append(all, fmt.Sprintf("%s %d", point, k.kills[point]))
	}
	return strings.Join(all, ", ")
}

// elsewhere are points that no ADD and no DEL goes past, and why.
var elsewhere = map[string]string{
	"ledger.create.kept":    "underlayctl ledger rebuild alone keeps an old ledger",
	"ledger.rebuild.placed": "the same",
	// Each of these is in the ledger's own TestCrash.
	"ledger.migrate.copied":  "only a ledger of schema 1 migrates",
	"ledger.migrate.done":    "the same",
	"ledger.copy.written":    "the same",
	"ledger.intent.kept":     "the agent alone gives addresses away",
	"ledger.confirm.written": "the agent alone confirms leases",
	"ledger.renew.kept":      "the agent alone renews a node",
	// TestSubnetFileKilled has these.
	"leases.lent":  "the agent alone lends blocks",
	"leases.noted": "the same",
}

// wantEveryPoint: each point in the source has killed, so that a new one does
// not go untested.
func (k *tally) wantEveryPoint(t *testing.T) {
	t.Helper()
	found := pointsInSource(t)
	for point, path := range found {
		if why, n := elsewhere[point], k.kills[point]; (n == 0) == (why == "") {
			t.Errorf("%s: fault point %q killed %d times (exception: %q)", path, point, n, why)
		}
	}
	for point := range elsewhere {
		if found[point] == "" {
			t.Errorf("fault point %q is excepted, and is nowhere in the source", point)
		}
	}
	if len(found) < 15 {
		t.Errorf("found %d fault points; does this look in the right place?", len(found))
	}
}

// pointsInSource are all fault points, with the file that each is in.
func pointsInSource(t *testing.T) map[string]string {
	t.Helper()
	root, err := binaries.Root()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	point := regexp.MustCompile(`fault\.Point\((?:"([^"]+)"\))?`)
	for _, top := range []string{"plugins", "pkg", "ipam"} {
		err := fs.WalkDir(os.DirFS(root), top, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(filepath.Join(root, path))
			for _, m := range point.FindAllStringSubmatch(string(text), -1) {
				if first := found[m[1]]; m[1] == "" || first != "" {
					t.Errorf("%s: %s is no name, or that of a point in %q already", path, m[0], first)
				}
				found[m[1]] = path
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// wantSoundLedger: the command line finds nothing wrong with the host's ledger,
// and nobody has answered for an address that was given out. On a wire without
// strangers that would be a second holder.
func wantSoundLedger(t *testing.T, h *lab.Host) {
	t.Helper()
	_, noLedger := os.Stat(filepath.Join(h.DataDir, "ledger.db"))
	_, noMark := os.Stat(filepath.Join(h.RunDir, "ledger.seq"))
	if os.IsNotExist(noLedger) && os.IsNotExist(noMark) {
		return // there has never been one
	}
	check, err := h.Exec(t.Context(), filepath.Join(ours, "underlayctl"),
		"--data-dir", h.DataDir, "--run-dir", h.RunDir, "-o", "json", "ledger", "check")
	var said struct{ Findings, Leaks []any }
	if jerr := json.Unmarshal([]byte(check), &said); err != nil || jerr != nil || said.Findings == nil || said.Leaks == nil {
		t.Errorf("ledger check: %v, %v: %s", err, jerr, check)
	} else if len(said.Findings)+len(said.Leaks) > 0 {
		t.Errorf("ledger check: %s", check)
	}
	for _, r := range readBooks(t, h).Addresses {
		// The link of an ADD that died before it was recorded keeps the MAC,
		// and so the address, from others.
		if r.State == ipam.Quarantined && !strings.Contains(r.Reason, "stands for it") {
			t.Errorf("%s is quarantined: %s", r.Address, r.Reason)
		}
	}
}

// hostLinks is what may not change on the host. Link-local addresses are left
// out: the kernel adds them in its own time.
func hostLinks(t *testing.T, h *lab.Host) []lab.Link {
	t.Helper()
	links, err := h.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range links {
		links[i].Addrs = slices.DeleteFunc(links[i].Addrs, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	}
	return links
}

// wantNothing: no link is in any of the containers, nothing is held, and the
// host is as it was.
func wantNothing(t *testing.T, h *lab.Host, before []lab.Link, containers ...*lab.Namespace) {
	t.Helper()
	for _, n := range containers {
		wantNoLink(t, n)
	}
	wantNothingHeld(t, h)
	wantSoundLedger(t, h)
	if diff := cmp.Diff(before, hostLinks(t, h), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("the host's links changed (-before +after):\n%s", diff)
	}
}
