package event_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/admin"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/agent/event"
	"github.com/underlay-cni/underlay/pkg/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		// Scripts leave out where the agent is.
		"underlayctl": func() {
			args := append(os.Args[1:len(os.Args):len(os.Args)], "--run-dir="+os.Getenv("AGENT"), "--data-dir=/nowhere")
			os.Exit(cli.Run(context.Background(), args, cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
	})
}

// agent answers underlayctl with the events of a node, and has nothing else.
type agent struct {
	dir   string
	stop  func()
	ended chan error
}

// With implements admin.Ledger.
func (*agent) With(func(*ledger.Ledger) error) error { return errors.New("there is no ledger") }

func (a *agent) start() error {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	log := slog.New(slog.DiscardHandler)
	events := event.New(event.Config{Slog: log, Now: func() time.Time { return now }})
	for _, e := range []api.Event{
		{Kind: api.RegistryConnected, Text: "the registry is followed"},
		{Kind: api.AddressConflict, Network: "lan", Pool: "lan", Addr: netip.MustParseAddr("192.0.2.7"), Container: "web", IfName: "eth0", Text: "02:00:00:00:00:01 answers for it"},
		{Kind: api.BlockLeased, Pool: "pods", Block: netip.MustParsePrefix("10.5.0.0/26"), Text: "leased a block"},
	} {
		events.Add(e)
	}
	server, err := admin.New(admin.Config{Node: "n1", Socket: filepath.Join(a.dir, admin.SocketName), Ledger: a,
		Pending: func() []string { return nil }, Log: log, Registry: prometheus.NewRegistry(), Events: events})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	go func() { a.ended <- server.Run(ctx) }()
	select {
	case <-server.Ready():
		return nil
	case err := <-a.ended:
		a.stop = nil
		return errors.Join(err, errors.New("the agent did not start"))
	}
}

func (a *agent) end() error {
	if a.stop == nil {
		return nil
	}
	a.stop()
	a.stop = nil
	return <-a.ended
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for each command under -race
			dir, err := os.MkdirTemp("", "ul")        // the path of a socket has 108 octets
			if err != nil {
				return err
			}
			a := &agent{dir: dir, ended: make(chan error, 1)}
			env.Setenv("AGENT", dir)
			env.Values["agent"] = a
			env.Defer(func() { _, _ = a.end(), os.RemoveAll(dir) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(ts.Value("agent").(*agent).start()) },
			"stop":  func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(ts.Value("agent").(*agent).end()) },
		},
	})
}

// TestFollow: who follows sees what was, a line each, until interrupted or the
// agent ends.
func TestFollow(t *testing.T) {
	dir, err := os.MkdirTemp("", "ul")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	a := &agent{dir: dir, ended: make(chan error, 1)}
	if err := a.start(); err != nil {
		t.Fatal(err)
	}
	follow := func(ctx context.Context, args ...string) (lines *bufio.Scanner, complaint *bytes.Buffer, status <-chan int) {
		r, w := io.Pipe()
		complaint = &bytes.Buffer{}
		done := make(chan int, 1)
		go func() {
			done <- cli.Run(ctx, append([]string{"event", "list", "--follow", "--run-dir=" + dir}, args...), cli.Stdio{Out: w, Err: complaint})
		}()
		return bufio.NewScanner(r), complaint, done
	}
	ctx, interrupt := context.WithCancel(t.Context())
	lines, _, status := follow(ctx)
	want := []string{
		"2026-01-02T03:04:05Z  registryConnected  -         -                -             the registry is followed",
		"2026-01-02T03:04:05Z  conflict           lan       192.0.2.7        web           02:00:00:00:00:01 answers for it",
	}
	for _, w := range want {
		if !lines.Scan() || lines.Text() != w {
			t.Errorf("%q, want %q", lines.Text(), w)
		}
	}
	lines.Scan()
	interrupt()
	if s := <-status; s != 0 {
		t.Errorf("interrupted, it exits with %d", s)
	}
	lines, complaint, status := follow(t.Context(), "-o", "json", "--kind", "conflict")
	var e api.Event
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Container != "web" {
		t.Errorf("%q", lines.Text())
	}
	if err := a.end(); err != nil {
		t.Error(err)
	}
	if s := <-status; s != 1 || !strings.Contains(complaint.String(), "the agent has ended") {
		t.Errorf("when the agent ends, it exits with %d: %s", s, complaint)
	}
}
