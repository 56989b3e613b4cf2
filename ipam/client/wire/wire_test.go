package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
)

func full(t testing.TB) *Request {
	t.Helper()
	cfg, err := ipam.Load([]byte(`{"type":"underlay","coolDown":"5s","sticky":true,"ranges":[
		[{"subnet":"192.0.2.0/24","rangeStart":"192.0.2.100","exclude":["192.0.2.150"]},{"subnet":"198.51.100.0/24"}],[{"subnet":"2001:db8::/64"}]]}`), "lan", nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
	att := ipam.Attachment{Network: "lan", ContainerID: "c\x01\"", IfName: "eth0"}
	return &Request{
		Version: Version, Op: OpAllocate, Deadline: 5, DataDir: "/var/lib/x",
		Allocate: &ipam.AllocateRequest{Attachment: att, Pool: cfg.Pool, Cluster: "red",
			Routes: []ipam.Route{{Dst: netip.MustParsePrefix("::/0"), MTU: 1400, Scope: new(int)}}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.101")},
			Places: []string{"ips[0]"}, Avoid: []netip.Addr{netip.MustParseAddr("2001:db8::1")}, MAC: "02:00:00:00:00:01", MACPrefix: "02",
			Owner: "ns/x", Runtime: "ctr", Netns: ipam.Netns{Path: "/p", Dev: 1 << 60, Inode: 1<<64 - 1},
			Uses: ipam.Uses{Parent: "eth1", VLAN: 5, HostAccess: true, Port: "l2", Network: "pods", Masquerade: true, Segment: ipam.Segment{VNI: 5001, Port: 8472}}, Wire: "eth1.5", Token: 1<<64 - 1},
		Release: &ipam.ReleaseRequest{Attachment: att, Before: now, Token: 1<<64 - 1, Undo: true,
			Conflict: []ipam.Conflict{{Address: netip.MustParseAddr("192.0.2.1"), Reason: "answered"}}},
		Seen: &Seen{Since: now, Netns: ipam.Netns{Inode: 4}}, Attachment: &att,
		Stale: &Stale{Network: "lan", Runtime: "ctr", Before: now}, Uses: &ipam.Uses{Parent: "eth1"}, Status: &Status{Pool: cfg.Pool, Cluster: "red", Exhausted: true},
	}
}

var equal = cmp.Options{cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func TestRequest(t *testing.T) {
	t.Parallel()
	want := full(t)
	b, err := Encode(want)
	if err != nil || bytes.Count(b, []byte("\n")) != 1 || b[len(b)-1] != '\n' {
		t.Fatalf("%q, %v", b, err)
	}
	got, err := ReadRequest(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-sent +received):\n%s", diff)
	}
}

func TestSeen(t *testing.T) {
	t.Parallel()
	rec := ipam.AttachmentRecord{Since: time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC), Netns: ipam.Netns{Inode: 4}}
	later := rec
	later.Since = later.Since.Add(time.Microsecond)
	elsewhere := rec
	elsewhere.Netns.Inode++
	if !SeenOf(rec).Equal(SeenOf(rec)) || SeenOf(rec).Equal(SeenOf(later)) || SeenOf(rec).Equal(SeenOf(elsewhere)) || SeenOf(rec).Equal(Seen{}) {
		t.Error("records are not told apart")
	}
}

// TestFailure: an error comes out as what went in.
func TestFailure(t *testing.T) {
	t.Parallel()
	lost := &ipam.LedgerError{Path: "/x/ledger.db", Msg: "gives out no addresses", Hint: "run it", Err: fmt.Errorf("%w: it is missing", ledger.ErrLost)}
	for _, err := range []error{
		&ipam.FieldError{Place: "ips[0]", Msg: "bad"},
		&ipam.FieldError{Place: "x", Msg: "bad", Code: ipam.CodeDecode},
		&ipam.ExhaustedError{Pool: "lan", Ranges: "a-b", Counts: ipam.Counts{Usable: 1<<63 - 1, Held: 1, Cooling: 2, Quarantined: 3, Reserved: 4, Other: 5}},
		&ipam.ExhaustedError{Pool: "red", Ranges: "a-b", Counts: ipam.Counts{Usable: 9, Held: 1, Giving: 2, Elsewhere: 6}, Cluster: true},
		&ipam.FieldError{Place: "ipam.pool", Msg: "unknown", Code: ipam.CodeTryAgainLater},
		&ipam.LedgerError{Path: "/x", Msg: "gives out nothing yet", Hint: "start it", Err: ledger.ErrUnconfirmed, Code: ipam.CodeTryAgainLater},
		&ipam.TakenError{Addr: netip.MustParseAddr("2001:db8::1"), State: ipam.Held, Holder: "x"},
		lost,
		&ipam.LedgerError{Path: "/x", Msg: "is busy", Err: fmt.Errorf("%w: %w", ledger.ErrLocked, context.DeadlineExceeded), Code: ipam.CodeTryAgainLater},
		&ipam.LedgerError{Path: "/x", Msg: "cannot be used", Err: boltfile.ErrUnknown},
		fmt.Errorf("wrapped: %w", lost),
		errors.Join(&ipam.ExhaustedError{Pool: "lan"}, errors.New("and that")),
		errors.New("plain"),
		ErrElsewhere,
	} {
		b, eerr := Encode(Response{Version: Version, Failure: NewFailure(err)})
		if eerr != nil {
			t.Fatal(eerr)
		}
		r, rerr := ReadResponse(bytes.NewReader(b))
		if rerr != nil {
			t.Fatal(rerr)
		}
		got := r.Failure.Err()
		if got.Error() != err.Error() {
			t.Errorf("%q became %q", err, got)
		}
		if code(got) != code(err) {
			t.Errorf("%q: code %d became %d", err, code(err), code(got))
		}
		for _, s := range sentinels {
			if errors.Is(got, s.err) != errors.Is(err, s.err) {
				t.Errorf("%q: is %q: %v", err, s.name, errors.Is(got, s.err))
			}
		}
		for _, typed := range []any{new(*ipam.FieldError), new(*ipam.ExhaustedError), new(*ipam.TakenError), new(*ipam.LedgerError)} {
			if errors.As(got, typed) != errors.As(err, typed) {
				t.Errorf("%q: as %T: %v", err, typed, errors.As(got, typed))
			}
		}
	}
	if (*Failure)(nil).Err() != nil {
		t.Error("no failure is no error")
	}
}

func code(err error) uint {
	var c interface{ CNICode() uint }
	if errors.As(err, &c) {
		return c.CNICode()
	}
	return 0
}

func TestLines(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in  string
		bad bool // to be answered
	}{{"", false}, {`{"v":1`, false}, {"{}\n", true}, {"\n", true}, {strings.Repeat("x", MaxRequest), true}} {
		_, err := ReadRequest(strings.NewReader(tt.in))
		var bad *BadRequest
		if err == nil || errors.As(err, &bad) != tt.bad {
			t.Errorf("%.20q: %v", tt.in, err)
		}
	}
}

// FuzzReadRequest: whatever comes in is refused or means the same when it is
// sent on.
func FuzzReadRequest(f *testing.F) {
	b, err := Encode(full(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":1,"op":"users","deadline":1,"uses":{}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ReadRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := Encode(q)
		if err != nil {
			return // a time that JSON has no form for
		}
		p, err := ReadRequest(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("%q: %v", again, err)
		}
		if diff := cmp.Diff(q, p, equal); diff != "" {
			t.Error(diff)
		}
	})
}
