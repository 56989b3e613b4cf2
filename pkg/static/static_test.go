package static

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/link"
)

// inside has test run in a network namespace of its own that is on 192.0.2.0/24,
// on a thread that ends with it, and so the namespace.
func inside(t *testing.T, test func(t *testing.T, h Host, notes *bytes.Buffer)) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	run(t, "ip link set lo up")
	run(t, "ip link add eth1 type veth peer name wire")
	run(t, "ip link set wire up")
	run(t, "ip link set eth1 up")
	run(t, "ip addr add 192.0.2.1/24 dev eth1")
	links, err := link.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	notes := &bytes.Buffer{}
	test(t, Host{Dir: filepath.Join(t.TempDir(), "static.d"), Links: links, Notes: notes}, notes)
}

// run runs a command in the namespace of the calling thread.
func run(t *testing.T, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

func network(name string, masquerade bool, peers ...string) Network {
	n := Network{Name: name, Masquerade: masquerade}
	for _, p := range peers {
		prefix, via, _ := strings.Cut(p, " ")
		n.Peers = append(n.Peers, Peer{netip.MustParsePrefix(prefix), netip.MustParseAddr(via)})
	}
	return n
}

func attachment(id, prefix string) Attachment {
	return Attachment{ContainerID: id, IfName: "eth0", Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}}
}

// wantRoutes: these prefixes are routed to by us, and no others.
func wantRoutes(t *testing.T, prefixes ...string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(run(t, "ip route show proto 142")) {
		got = append(got, strings.Fields(line)[0])
	}
	if fmt.Sprint(got) != fmt.Sprint(prefixes) {
		t.Errorf("routes to %v, want %v", got, prefixes)
	}
}

// wantNothing: neither routes, rules nor files are left.
func wantNothing(t *testing.T, h Host) {
	t.Helper()
	wantRoutes(t)
	if s := run(t, "nft list ruleset"); strings.Contains(s, Table) {
		t.Errorf("rules are left:\n%s", s)
	}
	files, err := os.ReadDir(h.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != lockName {
			t.Errorf("file %s is left", f.Name())
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Two networks come and go, and neither takes anything from the other.
func TestTwoNetworks(t *testing.T) {
	t.Parallel()
	inside(t, func(t *testing.T, h Host, _ *bytes.Buffer) {
		ctx := t.Context()
		run(t, "ip route add 198.51.100.0/24 via 192.0.2.9")
		run(t, "nft add table inet other")
		a := network("a", true, "10.5.2.0/24 192.0.2.2", "10.5.1.0/24 192.0.2.1") // the second is this host
		b := network("b", false, "10.5.2.0/24 192.0.2.2", "10.6.2.0/24 192.0.2.3")
		a1, b1, b2 := attachment("a1", "10.5.1.0/24"), attachment("b1", "10.6.1.0/24"), attachment("b2", "10.6.1.0/24")
		must(t, h.Join(ctx, a, a1))
		wantRoutes(t, "10.5.2.0/24")
		must(t, h.Join(ctx, b, b1))
		must(t, h.Join(ctx, b, b2))
		must(t, h.Join(ctx, b, b2)) // repeated
		wantRoutes(t, "10.5.2.0/24", "10.6.2.0/24")
		must(t, h.Check(a, a1))
		must(t, h.Check(b, b2))
		set := func(name string) string { return run(t, "nft list set inet "+Table+" "+name) }
		if s := set("masquerade4"); !strings.Contains(s, "10.5.1.0/24") || strings.Contains(s, "10.6") {
			t.Errorf("masquerades %s", s)
		}
		if s := set("forward4"); !strings.Contains(s, "10.6.1.0-10.6.2.255") { // neighbours are merged
			t.Errorf("forwards %s", s)
		}

		must(t, h.Leave(ctx, "a", a1))
		must(t, h.Leave(ctx, "a", a1))
		wantRoutes(t, "10.5.2.0/24", "10.6.2.0/24") // b has the first one, too
		if s := run(t, "nft list ruleset"); strings.Contains(s, "masquerade fully-random") {
			t.Errorf("still masquerades: %s", s)
		}
		run(t, "ip route del 10.6.2.0/24")
		run(t, "nft delete table inet "+Table)
		if err := h.Check(b, b1); err == nil || !strings.Contains(err.Error(), "peers[1]: the route to 10.6.2.0/24") {
			t.Errorf("CHECK of a route that is gone: %v", err)
		}
		must(t, h.Join(ctx, b, b1)) // brings back what is gone
		wantRoutes(t, "10.5.2.0/24", "10.6.2.0/24")
		set("forward4")

		must(t, h.Prune(ctx, "b", time.Now(), func(id, _ string) bool { return id == "b2" }))
		must(t, h.Check(b, b2))
		if err := h.Check(b, b1); err == nil {
			t.Error("GC has left what is not valid")
		}
		must(t, h.Prune(ctx, "b", time.Now().Add(-time.Hour), func(string, string) bool { return false }))
		must(t, h.Check(b, b2)) // made after GC began
		must(t, h.Leave(ctx, "b", b2))
		wantNothing(t, h)
		if s := run(t, "ip route show 198.51.100.0/24"); !strings.Contains(s, "192.0.2.9") {
			t.Errorf("somebody else's route: %q", s)
		}
		if !strings.Contains(run(t, "nft list ruleset"), "table inet other") {
			t.Error("somebody else's table is gone")
		}
	})
}

// Two networks that want one prefix by different hosts: the first has it, and
// the second is told.
func TestConflict(t *testing.T) {
	t.Parallel()
	inside(t, func(t *testing.T, h Host, _ *bytes.Buffer) {
		ctx := t.Context()
		z := network("z", false, "10.5.2.0/24 192.0.2.2")
		a := network("a", false, "10.5.2.0/24 192.0.2.3")
		must(t, h.Join(ctx, z, attachment("z1", "10.5.1.0/24")))
		err := h.Join(ctx, a, attachment("a1", "10.6.1.0/24"))
		if err == nil || !strings.Contains(err.Error(), "peers[0]: another network of this host has 10.5.2.0/24 via 192.0.2.2") {
			t.Errorf("second network: %v", err)
		}
		must(t, h.Leave(ctx, "a", attachment("a1", "10.6.1.0/24")))
		must(t, h.Check(z, attachment("z1", "10.5.1.0/24")))
		must(t, h.Leave(ctx, "z", attachment("z1", "10.5.1.0/24")))
		wantNothing(t, h)

		far := network("a", false, "10.5.2.0/24 203.0.113.9")
		if err := h.Join(ctx, far, attachment("a1", "10.6.1.0/24")); err == nil || !strings.Contains(err.Error(), "peers[0].via: 203.0.113.9 is on no segment") {
			t.Errorf("a peer that is no neighbour: %v", err)
		}
	})
}

// Whatever a plugin that was killed has left, the next one finishes: between any
// two steps there are a mark, files, and a kernel of before or after.
func TestKilled(t *testing.T) {
	t.Parallel()
	inside(t, func(t *testing.T, h Host, _ *bytes.Buffer) {
		ctx := t.Context()
		a, a1 := network("a", true, "10.5.2.0/24 192.0.2.2"), attachment("a1", "10.5.1.0/24")
		mark := func() { must(t, os.WriteFile(h.mark(), nil, 0o600)) }
		steps := map[string]func(){
			"marked":                  mark,
			"written, not applied":    func() { mark(); run(t, "ip route flush proto 142"); run(t, "nft delete table inet "+Table) },
			"routes made, rules not":  func() { mark(); run(t, "nft delete table inet "+Table) },
			"applied, mark not gone":  mark,
			"removed, not applied":    func() { mark(); must(t, os.Remove(h.file("a"))) },
			"half of a file was left": func() { must(t, os.WriteFile(h.Dir+temporary+"a", []byte(`{"v"`), 0o600)) },
			"half of the first file": func() {
				mark()
				must(t, os.Remove(h.file("a")))
				must(t, os.WriteFile(h.Dir+temporary+"a", nil, 0o600))
				run(t, "ip route flush proto 142")
				run(t, "nft delete table inet "+Table)
				must(t, os.Remove(h.mark()))
			},
			// Its folder may be on a disk, and the disk of a host that lost its power.
			"an empty file": func() { mark(); must(t, os.WriteFile(h.file("a"), nil, 0o600)) },
		}
		for name, kill := range steps {
			for _, then := range []string{"leave", "join"} {
				must(t, h.Join(ctx, a, a1))
				kill()
				if then == "join" {
					if err := h.Join(ctx, a, a1); err != nil {
						t.Errorf("%s, then join: %v", name, err)
					}
					wantRoutes(t, "10.5.2.0/24")
					if s := run(t, "nft list ruleset"); !strings.Contains(s, "masquerade fully-random") {
						t.Errorf("%s, then join: rules\n%s", name, s)
					}
				}
				if err := h.Leave(ctx, "a", a1); err != nil {
					t.Errorf("%s, then %s and leave: %v", name, then, err)
				}
				wantNothing(t, h)
				if t.Failed() {
					t.Fatalf("%s, then %s", name, then)
				}
			}
		}
	})
}

// A file that makes no sense is in its own network's way alone. What that network
// needs stays as it is, until somebody removes the file.
func TestOdd(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(text []byte) []byte{
		"garbage":            func([]byte) []byte { return []byte("\x00\xff{") },
		"cut off":            func(text []byte) []byte { return text[:len(text)/2] },
		"of a later version": func(text []byte) []byte { return bytes.Replace(text, []byte(`"v":1`), []byte(`"v":9`), 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inside(t, func(t *testing.T, h Host, _ *bytes.Buffer) {
				ctx := t.Context()
				a, a1 := network("a", true, "10.5.2.0/24 192.0.2.2"), attachment("a1", "10.5.1.0/24")
				b := network("b", true, "10.6.2.0/24 192.0.2.3")
				b1, b2 := attachment("b1", "10.6.1.0/24"), attachment("b2", "10.6.3.0/24")
				must(t, h.Join(ctx, a, a1))
				must(t, h.Join(ctx, b, b1))
				text, err := os.ReadFile(h.file("a"))
				must(t, err)
				must(t, os.WriteFile(h.file("a"), spoil(text), 0o600))

				must(t, h.Join(ctx, b, b2))
				must(t, h.Check(b, b2))
				wantRoutes(t, "10.5.2.0/24", "10.6.2.0/24")
				for _, what := range []string{"10.5.1.0/24", "10.6.1.0/24", "10.6.3.0/24"} {
					if s := run(t, "nft list set inet "+Table+" masquerade4"); !strings.Contains(s, what) {
						t.Errorf("%s is not masqueraded:\n%s", what, s)
					}
				}
				if s := run(t, "nft list chain inet "+Table+" postrouting"); strings.Count(s, "masquerade fully-random") != 1 {
					t.Errorf("rules:\n%s", s)
				}
				for what, err := range map[string]error{
					"join": h.Join(ctx, a, a1), "check": h.Check(a, a1), "leave": h.Leave(ctx, "a", a1),
					"prune": h.Prune(ctx, "a", time.Now(), func(string, string) bool { return false }),
				} {
					if err == nil || !strings.Contains(err.Error(), h.file("a")) || !strings.Contains(err.Error(), "remove it") {
						t.Errorf("%s: %v", what, err)
					}
				}
				must(t, h.Leave(ctx, "b", b1))
				must(t, h.Prune(ctx, "b", time.Now().Add(time.Hour), func(string, string) bool { return false }))
				wantRoutes(t, "10.5.2.0/24")
				if s := run(t, "nft list set inet "+Table+" masquerade4"); !strings.Contains(s, "10.5.1.0/24") {
					t.Errorf("what the odd one needs is gone:\n%s", s)
				}
				// As told, and then all is as the files say.
				must(t, os.Remove(h.file("a")))
				must(t, h.Leave(ctx, "a", a1))
				wantNothing(t, h)
				must(t, h.Join(ctx, a, a1))
				wantRoutes(t, "10.5.2.0/24")
				must(t, h.Leave(ctx, "a", a1))
				wantNothing(t, h)
			})
		})
	}
}

// What was written before the host was started again is not true any more.
func TestReboot(t *testing.T) {
	t.Parallel()
	inside(t, func(t *testing.T, h Host, _ *bytes.Buffer) {
		ctx := t.Context()
		a, a1 := network("a", false, "10.5.2.0/24 192.0.2.2"), attachment("a1", "10.5.1.0/24")
		must(t, h.Join(ctx, a, a1))
		text, err := os.ReadFile(h.file("a"))
		must(t, err)
		boot, err := fault.Boot()
		must(t, err)
		must(t, os.WriteFile(h.file("a"), bytes.ReplaceAll(text, []byte(boot), []byte("another")), 0o600))
		if err := h.Check(a, a1); err == nil {
			t.Error("an attachment of another boot is there")
		}
		must(t, h.Leave(ctx, "a", a1))
		wantNothing(t, h)
	})
}

// Who drops what is forwarded is told, and passed by where that is asked for.
func TestFixForwardDrop(t *testing.T) {
	t.Parallel()
	inside(t, func(t *testing.T, h Host, notes *bytes.Buffer) {
		ctx := t.Context()
		run(t, "nft add table ip filter")
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\n")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		a, a1 := network("a", false), attachment("a1", "10.5.1.0/24")
		must(t, h.Join(ctx, a, a1))
		if !strings.Contains(notes.String(), "FORWARD") || !strings.Contains(notes.String(), "0x20000") {
			t.Errorf("who drops is not told: %q", notes)
		}
		must(t, h.Leave(ctx, "a", a1))
		h.FixDrop = true
		notes.Reset()
		must(t, h.Join(ctx, a, a1))
		if s := run(t, "nft list chain ip filter FORWARD"); !strings.Contains(s, "0x00020000") || !strings.Contains(s, "accept") {
			t.Errorf("not mended:\n%s", s)
		}
		if notes.Len() != 0 {
			t.Errorf("tells %q", notes)
		}
		must(t, h.Leave(ctx, "a", a1))
	})
}
