package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// place is a ledger with a client, and agents that come and go.
type place struct {
	t       testing.TB
	dir     string
	c       *client.Client
	pool    ipam.Pool
	options ledger.Options
}

func newPlace(t testing.TB) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "ul") // the path of a socket has 108 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &place{t: t, dir: dir, c: client.New(filepath.Join(dir, "data"), filepath.Join(dir, "run"))}
	p.options = p.c.Options()
	cfg, err := ipam.Load([]byte(`{"type":"underlay","ranges":[[{"subnet":"10.0.0.0/12"}]]}`), "lan", nil)
	if err != nil {
		t.Fatal(err)
	}
	p.pool = cfg.Pool
	t.Cleanup(func() {
		l, err := ledger.Open(context.Background(), p.options)
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		if findings, err := l.Check(); err != nil || len(findings) > 0 {
			t.Errorf("check: %q, %v", findings, err)
		}
	})
	return p
}

// start starts an agent's service, ready; stop ends it.
func (p *place) start(change ...func(*Config)) (s *Service, stop func()) {
	p.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	conf := Config{Ledger: p.options, Log: log, Registry: prometheus.NewRegistry(), RetryAfter: 50 * time.Millisecond}
	for _, f := range change {
		f(&conf)
	}
	s, err := New(conf)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			p.t.Errorf("the service ended: %v", err)
		}
	})
	p.t.Cleanup(stop)
	select {
	case <-s.Ready():
	case <-time.After(10 * time.Second):
		p.t.Fatal("the service does not get ready")
	}
	return s, stop
}

func att(id string) ipam.Attachment {
	return ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"}
}

func (p *place) request(id string) ipam.AllocateRequest {
	return ipam.AllocateRequest{Attachment: att(id), Pool: p.pool, Runtime: "ctr", Netns: ipam.Netns{Path: "/run/netns/" + id, Dev: 4, Inode: 99}}
}

func (p *place) add(id string) string {
	p.t.Helper()
	a, err := p.c.Allocate(p.t.Context(), p.request(id), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return a.Addresses[0].Prefix.String()
}

// leaseRed has the ledger lease all of a cluster pool, which is one address.
func (p *place) leaseRed() {
	p.t.Helper()
	l, err := ledger.Open(p.t.Context(), p.options)
	if err != nil {
		p.t.Fatal(err)
	}
	a := netip.MustParseAddr("198.51.100.7")
	red := ipam.Pool{Name: "red", UUID: "6a4f2f0e-3f0f-4c49-9a3e-1f1d5f6a7b01", Routes: []ipam.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: a.Next()}},
		Sets: []ipam.RangeSet{{{Subnet: netip.MustParsePrefix("198.51.100.0/24"), Interval: ipam.Interval{First: a, Last: a}}}}}
	me, err := l.Node()
	err = errors.Join(err, l.SetPools([]ipam.Pool{red}))
	_, lerr := l.Learn(red.UUID, lease.Seen{Block: lease.Block{CIDR: netip.PrefixFrom(a, 32), Owner: me}, Rev: 1}, true)
	if err := errors.Join(err, lerr, l.Confirm(), l.Close()); err != nil {
		p.t.Fatal(err)
	}
}

// TestSame: all that a client asks gives the same answers with an agent and
// without.
func TestSame(t *testing.T) {
	tests := []struct {
		name string
		call func(c *client.Client, pool ipam.Pool) (any, error)
	}{
		{"allocate", func(c *client.Client, pool ipam.Pool) (any, error) {
			return c.Allocate(t.Context(), ipam.AllocateRequest{Attachment: att("x"), Pool: pool, MACPrefix: "02"}, nil)
		}},
		{"allocate what is taken", func(c *client.Client, pool ipam.Pool) (any, error) {
			req := ipam.AllocateRequest{Attachment: att("y"), Pool: pool}
			req.Ask(pool.Sets[0][0].First.Next(), "ips[0]")
			return c.Allocate(t.Context(), req, nil)
		}},
		{"allocate from nowhere", func(c *client.Client, pool ipam.Pool) (any, error) {
			req := ipam.AllocateRequest{Attachment: att("y"), Pool: pool}
			req.Ask(pool.Sets[0][0].Gateway, "args.cni.ips[0]")
			return c.Allocate(t.Context(), req, nil)
		}},
		{"allocate from a full pool", func(c *client.Client, pool ipam.Pool) (any, error) {
			full := pool
			full.Sets = []ipam.RangeSet{{pool.Sets[0][0]}}
			full.Sets[0][0].Last = full.Sets[0][0].First.Next()
			return c.Allocate(t.Context(), ipam.AllocateRequest{Attachment: att("y"), Pool: full}, nil)
		}},
		{"allocate without a name", func(c *client.Client, pool ipam.Pool) (any, error) {
			return c.Allocate(t.Context(), ipam.AllocateRequest{Pool: pool}, nil)
		}},
		{"allocate from a cluster pool", func(c *client.Client, _ ipam.Pool) (any, error) {
			return c.Allocate(t.Context(), ipam.AllocateRequest{Attachment: att("r"), Cluster: "red", MACPrefix: "02"}, nil)
		}},
		{"allocate from a full cluster pool", func(c *client.Client, _ ipam.Pool) (any, error) {
			return c.Allocate(t.Context(), ipam.AllocateRequest{Attachment: att("y"), Cluster: "red"}, nil)
		}},
		{"allocate with other routes", func(c *client.Client, _ ipam.Pool) (any, error) {
			return c.Allocate(t.Context(), ipam.AllocateRequest{Attachment: att("r"), Cluster: "red", Routes: []ipam.Route{{Dst: netip.MustParsePrefix("::/0")}}}, nil)
		}},
		{"allocate from an unknown pool", func(c *client.Client, _ ipam.Pool) (any, error) {
			return c.Allocate(t.Context(), ipam.AllocateRequest{Attachment: att("y"), Cluster: "blue"}, nil)
		}},
		{"status of an unknown pool", func(c *client.Client, _ ipam.Pool) (any, error) {
			return nil, c.Status(t.Context(), ipam.Config{Cluster: "blue"})
		}},
		{"status of a full cluster pool", func(c *client.Client, _ ipam.Pool) (any, error) {
			return nil, c.Status(t.Context(), ipam.Config{Cluster: "red", StatusOnExhausted: true})
		}},
		{"allocate before leases are confirmed", func(c *client.Client, _ ipam.Pool) (any, error) {
			if err := os.Remove(filepath.Join(c.Options().RunDir, "confirmed")); err != nil {
				t.Error(err)
			}
			return c.Allocate(t.Context(), ipam.AllocateRequest{Attachment: att("y"), Cluster: "red"}, nil)
		}},
		{"status before leases are confirmed", func(c *client.Client, _ ipam.Pool) (any, error) {
			return nil, c.Status(t.Context(), ipam.Config{Cluster: "red"})
		}},
		{"attachment", func(c *client.Client, _ ipam.Pool) (any, error) {
			rec, recs, ok, err := c.Attachment(t.Context(), att("a"))
			return fmt.Sprint(rec.Addresses, rec.Netns, rec.Uses, recs[0].Address, ok), err
		}},
		{"no attachment", func(c *client.Client, _ ipam.Pool) (any, error) {
			rec, recs, ok, err := c.Attachment(t.Context(), att("none"))
			return fmt.Sprint(rec, recs, ok), err
		}},
		{"check", func(c *client.Client, pool ipam.Pool) (any, error) {
			return nil, c.Check(t.Context(), att("b"), nil)
		}},
		{"stale", func(c *client.Client, _ ipam.Pool) (any, error) {
			recs, err := c.Stale(t.Context(), "lan", "ctr", time.Now().Add(time.Hour), func(string, string) bool { return false })
			return fmt.Sprint(len(recs), recs[0].Attachment, recs[0].Addresses), err
		}},
		{"users", func(c *client.Client, _ ipam.Pool) (any, error) {
			vlan, host, err := c.Users(t.Context(), ipam.Uses{Parent: "eth1", VLAN: 5}, 0)
			return fmt.Sprint(len(vlan), vlan[0].Attachment, len(host)), err
		}},
		{"status", func(c *client.Client, pool ipam.Pool) (any, error) {
			return nil, c.Status(t.Context(), ipam.Config{Pool: pool, StatusOnExhausted: true})
		}},
		{"release", func(c *client.Client, _ ipam.Pool) (any, error) {
			var seen []string
			r, err := c.Release(t.Context(), ipam.ReleaseRequest{Attachment: att("a")}, func(rec ipam.AttachmentRecord) error {
				seen = append(seen, fmt.Sprint(rec.Attachment, rec.Addresses, rec.Netns))
				return nil
			})
			return fmt.Sprint(seen, len(r.Records), r.Records[0].Address, r.Uses), err
		}},
		{"release that is kept", func(c *client.Client, _ ipam.Pool) (any, error) {
			return c.Release(t.Context(), ipam.ReleaseRequest{Attachment: att("b")}, func(ipam.AttachmentRecord) error { return errors.New("the link stays") })
		}},
		{"release of nothing", func(c *client.Client, _ ipam.Pool) (any, error) {
			return c.Release(t.Context(), ipam.ReleaseRequest{Attachment: att("none")}, func(ipam.AttachmentRecord) error { return errors.New("called for nothing") })
		}},
	}
	fill := func() *place {
		p := newPlace(t)
		req := p.request("a")
		req.Uses = ipam.Uses{Parent: "eth1", VLAN: 5}
		if _, err := p.c.Allocate(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
		p.add("b")
		p.leaseRed()
		return p
	}
	with, without := fill(), fill()
	with.start()
	coded := func(err error) (code uint) {
		var c interface{ CNICode() uint }
		if errors.As(err, &c) {
			code = c.CNICode()
		}
		return code
	}
	for _, tt := range tests {
		got, gotErr := tt.call(with.c, with.pool)
		want, wantErr := tt.call(without.c, without.pool)
		if g, w := fmt.Sprint(got), strings.ReplaceAll(fmt.Sprint(want), without.dir, with.dir); g != w && tt.name != "allocate" {
			t.Errorf("%s: with an agent %s, without %s", tt.name, g, w)
		}
		if fmt.Sprint(gotErr) != strings.ReplaceAll(fmt.Sprint(wantErr), without.dir, with.dir) || fmt.Sprintf("%T", gotErr) != fmt.Sprintf("%T", wantErr) || coded(gotErr) != coded(wantErr) {
			t.Errorf("%s: with an agent %T %v, without %T %v", tt.name, gotErr, gotErr, wantErr, wantErr)
		}
	}
}

// raw sends a line to the agent and returns the answer.
func (p *place) raw(line string) (*wire.Response, error) {
	p.t.Helper()
	c, err := net.Dial("unix", filepath.Join(p.options.RunDir, wire.SocketName))
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, line); err != nil {
		return nil, err
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	return wire.ReadResponse(c)
}

func TestBadRequests(t *testing.T) {
	p := newPlace(t)
	p.start()
	later := fmt.Sprint(int64(wire.Boottime() + time.Minute))
	tests := []struct{ name, line, want string }{
		{"no JSON", "hello\n", "invalid character"},
		{"another version", `{"v":2,"op":"allocate"}` + "\n", "version 2 of the protocol, and this agent speaks 1"},
		{"unknown operation", `{"v":1,"op":"dance","deadline":` + later + "}\n", `unknown operation "dance"`},
		{"nothing to do it with", `{"v":1,"op":"allocate","deadline":` + later + "}\n", "without what it is about"},
		{"no deadline", `{"v":1,"op":"users","uses":{}}` + "\n", "no deadline"},
		{"wrong type", `{"v":1,"op":7}` + "\n", "cannot unmarshal"},
		{"too long", `{"v":1,"op":"` + strings.Repeat("x", wire.MaxRequest) + "\"}\n", "too long"},
		{"another ledger", `{"v":1,"op":"users","uses":{},"dataDir":"/nowhere","deadline":` + later + "}\n", wire.ErrElsewhere.Error()},
	}
	for _, tt := range tests {
		a, err := p.raw(tt.line)
		if tt.name == "too long" && errors.Is(err, unix.EPIPE) {
			continue // it was told while it was still writing
		}
		if err != nil || a.Failure == nil || !strings.Contains(a.Failure.Text, tt.want) {
			t.Errorf("%s: %+v, %v", tt.name, a, err)
		}
	}
	if a, err := p.raw(`{"v":1,"op":"users","uses":{},"deadline":1,"dataDir":"` + p.options.DataDir + "\"}\n"); err == nil {
		t.Errorf("expired: %+v", a)
	}
	if c, err := net.Dial("unix", filepath.Join(p.options.RunDir, wire.SocketName)); err != nil {
		t.Error(err)
	} else {
		c.Close() // a look, and away
	}
	p.add("a")
}

// TestElsewhere: a client whose ledger is another one opens that itself.
func TestElsewhere(t *testing.T) {
	p := newPlace(t)
	s, _ := p.start()
	other := client.New(filepath.Join(p.dir, "other"), p.options.RunDir)
	// Two ledgers in one run folder is what nobody should do; each is told from
	// the other all the same.
	if _, err := other.Allocate(t.Context(), p.request("a"), nil); err == nil || !errors.Is(err, ledger.ErrLost) {
		t.Errorf("a second ledger beside the mark of the first: %v", err)
	}
	err := s.With(func(l *ledger.Ledger) error {
		info, err := l.Info()
		if info.Held != 0 {
			t.Error("the agent answered for another ledger")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestOtherRunDir: a client that looks for the agent in another folder is told
// where it is, instead of waiting for a lock that is not let go.
func TestOtherRunDir(t *testing.T) {
	p := newPlace(t)
	_, stop := p.start()
	said := filepath.Join(p.options.DataDir, client.AgentLock)
	if err := os.WriteFile(said, []byte(p.options.RunDir+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := client.New(p.options.DataDir, filepath.Join(p.dir, "other"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := other.Allocate(ctx, p.request("a"), nil)
	var field *ipam.FieldError
	if !errors.As(err, &field) || field.Place != "runDir" || !strings.Contains(field.Msg, p.options.RunDir) {
		t.Errorf("while the agent runs: %v", err)
	}
	if _, err := other.Release(ctx, ipam.ReleaseRequest{Attachment: att("a")}, nil); err != nil {
		t.Errorf("a release: %v", err)
	}
	// Whoever asks is not in the way of an agent that takes the lock.
	f, err := os.Open(said)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if err := client.Elsewhere(other.Options()); err == nil {
		t.Error("the agent is not found while its lock is held")
	}
	stop()
	if _, err := other.Allocate(ctx, p.request("a"), nil); err != nil {
		t.Errorf("when it is gone: %v", err)
	}
}

// TestGone: who hears after all that its time was over is told to come again, and
// not that the ledger is bad.
func TestGone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	l, err := ledger.Open(t.Context(), p.options)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	q := &wire.Request{Op: wire.OpAllocate, Allocate: &ipam.AllocateRequest{Attachment: ipam.Attachment{Network: "lan", ContainerID: "c", IfName: "eth0"}, Pool: p.pool}}
	a := client.Answer(t.Context(), l, nil, q, func() error { return fmt.Errorf("%w: %w", errGone, context.DeadlineExceeded) })
	var coded interface{ CNICode() uint }
	if err := a.Failure.Err(); !errors.As(err, &coded) || coded.CNICode() != ipam.CodeTryAgainLater || strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("%v", err)
	}
}
