package ledger

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// TestMain runs the programs below in the place of the tests when a test
// starts this binary with LEDGER_PROGRAM set.
func TestMain(m *testing.M) {
	programs := map[string]func(Options) error{"scenario": scenario, "worker": worker}
	run, ok := programs[os.Getenv("LEDGER_PROGRAM")]
	if !ok {
		os.Exit(m.Run())
	}
	o := Options{DataDir: os.Getenv("LEDGER_DATA"), RunDir: os.Getenv("LEDGER_RUN"), BootID: "boot-1", MachineID: "machine"}
	if err := run(o); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// using opens the ledger for fn, as a plugin does.
func using(o Options, fn func(*Ledger) error) error {
	l, err := Open(context.Background(), o)
	if err != nil {
		return err
	}
	return errors.Join(fn(l), l.Close())
}

// tryAdd and tryDel announce what they try, and what was acknowledged.
func tryAdd(o Options, p ipam.Pool, id string) error {
	fmt.Println("try", id)
	return using(o, func(l *Ledger) error {
		a, err := l.Allocate(request(p, id), nil)
		if full := (*ipam.ExhaustedError)(nil); errors.As(err, &full) {
			fmt.Println("gone", id)
			return nil
		}
		if err == nil {
			fmt.Println("held", id, addrs(a))
		}
		return err
	})
}

func tryDel(o Options, id string) error {
	fmt.Println("try", id)
	return using(o, func(l *Ledger) error {
		_, err := l.Release(ipam.ReleaseRequest{Attachment: att(id)})
		if err == nil {
			fmt.Println("gone", id)
		}
		return err
	})
}

func trySpool(o Options, id string) error {
	fmt.Println("try", id)
	err := Spool([]string{o.DataDir, o.RunDir}, ipam.ReleaseRequest{Attachment: att(id)})
	if err == nil {
		fmt.Println("gone", id)
	}
	return err
}

// crashPool has 14 addresses.
var crashPool = ipam.Pool{Name: "lan", CoolDown: 20 * time.Millisecond, Sets: []ipam.RangeSet{{{
	Subnet:   netip.MustParsePrefix("10.0.0.0/24"),
	Interval: ipam.Interval{First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.14")},
}}}}

// scenario goes past every fault point.
func scenario(o Options) error {
	boot2 := o
	boot2.BootID = "boot-2"
	steps := []func() error{
		func() error { return using(o, asSchema1) },
		func() error { return tryAdd(o, crashPool, "a") },
		func() error { return tryAdd(o, crashPool, "b") },
		func() error { return tryAdd(o, crashPool, "c") },
		func() error { return tryDel(o, "b") },
		func() error { return trySpool(o, "a") },
		func() error { return tryAdd(o, crashPool, "d") },
		func() error { return using(o, leaseCrashBlock) },
		func() error { return tryAdd(o, crashCluster, "k") },
		func() error { return using(o, tryGive) },
		func() error { return tryDel(o, "k") },
		func() error {
			fmt.Println("renew")
			return using(o, func(l *Ledger) error { _, err := l.Renew(); return err })
		},
		func() error {
			fmt.Println("boot boot-2\ntry c\ntry d")
			return using(boot2, func(*Ledger) error { fmt.Println("gone c\ngone d"); return nil })
		},
		func() error { return tryAdd(boot2, crashPool, "e") },
		func() error {
			return using(boot2, func(l *Ledger) error {
				return l.file.Update(func(*bbolt.Tx) (bool, error) { return true, l.file.Reserve(2 * minFree << 3) })
			})
		},
		func() error {
			fmt.Println("rebuild")
			if err := Rebuild(context.Background(), boot2, found("e", "10.0.0.5/24")); err != nil {
				return err
			}
			fmt.Println("held e 10.0.0.5\nrebuilt")
			return nil
		},
		func() error { return tryAdd(boot2, crashPool, "f") },
		func() error { return tryDel(boot2, "e") },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func found(id string, prefixes ...string) []Found {
	f := Found{Attachment: att(id), Pool: "lan"}
	for _, p := range prefixes {
		f.Addresses = append(f.Addresses, ipam.Address{Prefix: netip.MustParsePrefix(p)})
	}
	return []Found{f}
}

// worker adds and deletes its four containers until it is killed.
func worker(o Options) error {
	for {
		id := fmt.Sprintf("w%s-%d", os.Getenv("LEDGER_WORKER"), rand.IntN(4))
		var err error
		switch n := rand.IntN(20); {
		case n < 10:
			err = tryAdd(o, crashPool, id)
		case n < 18:
			err = tryDel(o, id)
		default:
			err = trySpool(o, id)
		}
		if err != nil {
			return err
		}
	}
}

// TestCrash kills processes with SIGKILL and looks at what they leave: a sound
// ledger that holds all that was acknowledged. LEDGER_CRASH_ROUNDS sets how
// often it does so at random.
func TestCrash(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "ledger.test")
	if out, err := exec.Command("go", "test", "-c", "-tags", "faultpoint", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Run("at every fault point", func(t *testing.T) { everyPoint(t, bin) })
	t.Run("eight at once", func(t *testing.T) { eightAtOnce(t, bin) })
}

func program(bin, name string, o Options, env ...string) *exec.Cmd {
	cmd := exec.Command(bin)
	cmd.Env = append(os.Environ(), "LEDGER_PROGRAM="+name, "LEDGER_DATA="+o.DataDir, "LEDGER_RUN="+o.RunDir)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

func everyPoint(t *testing.T, bin string) {
	list := filepath.Join(t.TempDir(), "points")
	if out, err := program(bin, "scenario", testOptions(t, nil), "UNDERLAY_FAULT_LIST="+list).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(b))
	for _, name := range pointsInSource(t) {
		if !slices.Contains(points, name) {
			t.Errorf("the scenario does not go past %q", name)
		}
	}
	for n, name := range points {
		t.Run(fmt.Sprintf("%d %s", n+1, name), func(t *testing.T) {
			o := testOptions(t, nil)
			out, err := program(bin, "scenario", o, fmt.Sprintf("UNDERLAY_FAULT=#%d", n+1)).Output()
			if killed := (*exec.ExitError)(nil); !errors.As(err, &killed) || killed.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("was not killed: %v, %s", err, out)
			}
			books := books{}
			books.read(t, out)
			if strings.Contains(string(out), "boot boot-2") {
				o.BootID = "boot-2"
			}
			l, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if last := lastLine(out); last == "rebuild" && errors.Is(l.Refused(), ErrLost) {
				// Killed before the new ledger was marked: it has to be rebuilt again.
			} else if last != "rebuild" || l.Refused() != nil {
				books.audit(t, l)
			}
			shut(t, l)

			o.BootID = ""
			if out, err := program(bin, "scenario", o).CombinedOutput(); err != nil {
				t.Errorf("starting again: %v, %s", err, out)
			}
			o.BootID = "boot-2"
			wantStates(t, open(t, o), finalStates...)
		})
	}
}

// finalStates is what the scenario leaves.
var finalStates = []string{"10.0.0.1 held f", "10.0.0.5 cooling e"}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// pointsInSource lists the names of the fault points of this package and of
// those below it.
func pointsInSource(t *testing.T) (names []string) {
	t.Helper()
	for _, pattern := range []string{"*.go", "*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`fault\.Point\("([^"]+)"\)`).FindAllStringSubmatch(string(b), -1) {
				names = append(names, m[1])
			}
		}
	}
	return names
}

func eightAtOnce(t *testing.T, bin string) {
	rounds := 12
	if s := os.Getenv("LEDGER_CRASH_ROUNDS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	o := testOptions(t, nil)
	books := books{}
	acknowledged := 0
	for range rounds {
		outs := make([]bytes.Buffer, 8)
		var killed sync.WaitGroup
		for i := range outs {
			env := []string{fmt.Sprint("LEDGER_WORKER=", i)}
			if i%2 == 0 {
				env = append(env, fmt.Sprintf("UNDERLAY_FAULT=#%d", 1+rand.IntN(60)))
			}
			cmd := program(bin, "worker", o, env...)
			cmd.Stdout, cmd.Stderr = &outs[i], os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			killed.Add(1)
			time.AfterFunc(time.Duration(30+rand.IntN(300))*time.Millisecond, func() {
				_ = cmd.Process.Kill() // its fault point may have been first
				_ = cmd.Wait()
				killed.Done()
			})
		}
		killed.Wait()
		for i := range outs {
			acknowledged += books.read(t, outs[i].Bytes())
		}
		l, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		books.audit(t, l)
		shut(t, l)
	}
	t.Logf("%d rounds, %d acknowledgements", rounds, acknowledged)
	if acknowledged < rounds {
		t.Error("the workers hardly got anything done")
	}
}

// books are what was acknowledged: "held 10.0.0.1", "gone", or "" for what
// was under way when the process died.
type books map[string]string

// read takes up the output of a program, and returns how much of it was
// acknowledged.
func (b books) read(t *testing.T, out []byte) (acknowledged int) {
	t.Helper()
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		what, rest, _ := strings.Cut(lines.Text(), " ")
		id, addr, _ := strings.Cut(rest, " ")
		switch what {
		case "try":
			if b[id] == "" || !strings.HasPrefix(b[id], "held") {
				b[id] = ""
			} else {
				b[id] = "?" + b[id] // if it is an ADD it must come to the same
			}
		case "held":
			if was, known := strings.CutPrefix(b[id], "?held "); known && was != addr {
				t.Errorf("%s held %s, and was given %s", id, was, addr)
			}
			b[id] = "held " + addr
			acknowledged++
		case "gone":
			b[id] = "gone"
			acknowledged++
		case "gave":
			b["give "+id] = "giving"
			acknowledged++
		case "renew":
			maps.DeleteFunc(b, func(id, _ string) bool { return strings.HasPrefix(id, "give ") })
		case "error":
			t.Errorf("a program failed: %s", rest)
		}
	}
	return acknowledged
}

// audit compares the ledger with the books.
func (b books) audit(t *testing.T, l *Ledger) {
	t.Helper()
	for id, want := range b {
		if a, giving := strings.CutPrefix(id, "give "); giving {
			book, err := l.Book(clusterUUID, crashBlock)
			if m := book.Marks[netip.MustParseAddr(a)]; err != nil || m.Status != lease.Giving || m.To.Node != "other" {
				t.Errorf("%s was to be given away, and is %+v, %v", a, m, err)
			}
			continue
		}
		rec, _, found, err := l.Attachment(att(id))
		if err != nil {
			t.Error(err)
		}
		got := "gone"
		if found {
			got = "held " + rec.Addresses[0].String()
		}
		if want == "gone" && got != want || strings.HasPrefix(want, "held") && got != want {
			t.Errorf("%s is %s, and was acknowledged as %s", id, got, want)
		}
		b[id] = got
	}
	sound(t, l)
}
