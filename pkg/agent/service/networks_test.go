package service

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// routes are there or not.
type routes struct {
	mu      sync.Mutex
	why     error
	asked   []ipam.Uses
	stirred int
}

func (r *routes) Await(_ context.Context, u ipam.Uses) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, u)
	return r.why
}

// VNI is 7, or the one that is preferred.
func (r *routes) VNI(_ context.Context, tenant, name string, prefer int, look bool) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if tenant != "red" || name != "lan" {
		return 0, errors.New("asked for another")
	}
	if look {
		return 0, r.why
	}
	return cmp.Or(prefer, 7), r.why
}

func (r *routes) Stir() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stirred++
}

func (r *routes) set(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.why = why
}

func (r *routes) heard() (asked []ipam.Uses, stirred int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked, r.stirred
}

// TestNetworks: an attachment that reaches peers is not made before it can, and
// what keeps the routes hears of it.
func TestNetworks(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	_, stop := p.start()
	uses := ipam.Uses{Network: "pods", Masquerade: true}
	add := func(id string, u ipam.Uses) error {
		req := p.request(id)
		req.Uses = u
		_, err := p.c.Allocate(t.Context(), req, nil)
		return err
	}
	var field *ipam.FieldError
	if err := add("c1", uses); !errors.As(err, &field) || field.Place != "network" || !strings.Contains(field.Msg, `"pods"`) {
		t.Errorf("on a node on its own: %v", err)
	}
	stop()
	r := &routes{why: &ipam.FieldError{Place: "network", Msg: "nobody knows it", Code: ipam.CodeTryAgainLater}}
	s, _ := p.start(func(c *Config) { c.Networks = r })
	if err := add("c1", uses); !errors.As(err, &field) || field.CNICode() != ipam.CodeTryAgainLater || field.Msg != "nobody knows it" {
		t.Errorf("without routes: %v", err)
	}
	err := s.With(func(l *ledger.Ledger) error {
		_, _, found, err := l.Attachment(att("c1"))
		if found {
			t.Error("it is on record all the same")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	r.set(nil)
	for _, u := range []ipam.Uses{uses, {}} {
		if err := add("c1"+u.Network, u); err != nil {
			t.Errorf("%+v: %v", u, err)
		}
	}
	if asked, stirred := r.heard(); len(asked) != 2 || asked[1] != uses || stirred != 1 {
		t.Errorf("asked for %+v, stirred %d times", asked, stirred)
	}
	for _, u := range []ipam.Uses{uses, {}} {
		if _, err := p.c.Release(t.Context(), ipam.ReleaseRequest{Attachment: att("c1" + u.Network)}, nil); err != nil {
			t.Errorf("%+v: %v", u, err)
		}
	}
	if _, stirred := r.heard(); stirred != 2 {
		t.Errorf("stirred %d times", stirred)
	}
}

// TestSegments: an attachment is not made in a segment that cannot be, and what
// keeps segments hears of those that come and go.
func TestSegments(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r := &routes{why: &ipam.FieldError{Place: "vni", Msg: "a network has it"}}
	p.start(func(c *Config) { c.Segments = r })
	made := ipam.Uses{Parent: "eth1", Segment: ipam.Segment{VNI: 7, Port: 8472}}
	add := func(id string, u ipam.Uses) error {
		req := p.request(id)
		req.Uses = u
		_, err := p.c.Allocate(t.Context(), req, nil)
		return err
	}
	var field *ipam.FieldError
	if err := add("c1", made); !errors.As(err, &field) || field.Place != "vni" || field.Msg != "a network has it" {
		t.Errorf("refused: %v", err)
	}
	if err := add("c0", ipam.Uses{}); err != nil {
		t.Error(err)
	}
	r.set(nil)
	for _, u := range []ipam.Uses{made, {Parent: "lg7", Segment: ipam.Segment{VNI: 7}}} {
		if err := add(u.Parent, u); err != nil {
			t.Errorf("%+v: %v", u, err)
		}
	}
	if asked, stirred := r.heard(); len(asked) != 3 || asked[0] != made || stirred != 2 {
		t.Errorf("asked for %+v, stirred %d times", asked, stirred)
	}
	// One that comes again without its segment.
	if err := add("eth1", ipam.Uses{}); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"c0", "eth1", "lg7"} {
		if _, err := p.c.Release(t.Context(), ipam.ReleaseRequest{Attachment: att(id)}, nil); err != nil {
			t.Error(err)
		}
	}
	if _, stirred := r.heard(); stirred != 4 {
		t.Errorf("stirred %d times", stirred)
	}
}

// TestVNI: the cluster says which VNI a segment has by its name; while it cannot,
// and while no agent runs, the containers do that are in it.
func TestVNI(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	away := errors.New("the registry is away")
	r := &routes{}
	_, stop := p.start(func(c *Config) { c.Segments = r })
	ask := func(want int, text string, code uint) {
		t.Helper()
		got, err := p.c.SegmentVNI(t.Context(), wire.VNI{Tenant: "red", Name: "lan", Network: "lan/vxlan"})
		var coded interface{ CNICode() uint }
		if got != want || text == "" && err != nil {
			t.Errorf("%d, %v, want %d", got, err, want)
		}
		if text != "" && (!errors.As(err, &coded) || coded.CNICode() != code || !strings.Contains(err.Error(), text)) {
			t.Errorf("%v, want %q with code %d", err, text, code)
		}
	}
	ask(7, "", 0)
	if got, err := p.c.SegmentVNI(t.Context(), wire.VNI{Tenant: "red", Name: "lan", Network: "lan/vxlan", Look: true}); got != 0 || err != nil {
		t.Errorf("looked: %d, %v", got, err)
	}
	r.set(away)
	ask(0, `vni: is missing, and the cluster does not tell the one that it has given network "lan": the registry is away`, ipam.CodeTryAgainLater)
	r.set(&ipam.FieldError{Place: "vni", Msg: "no range"})
	ask(0, "vni: no range", ipam.CodeInvalidConfig)
	r.set(nil)
	req := p.request("c1")
	req.Attachment.Network = "lan/vxlan"
	req.Uses = ipam.Uses{Parent: "eth1", Segment: ipam.Segment{VNI: 9, Port: 8472}}
	if _, err := p.c.Allocate(t.Context(), req, nil); err != nil {
		t.Fatal(err)
	}
	ask(9, "", 0)
	r.set(away)
	ask(9, "", 0)
	stop()
	ask(9, "", 0)
	if _, err := p.c.Release(t.Context(), ipam.ReleaseRequest{Attachment: req.Attachment}, nil); err != nil {
		t.Fatal(err)
	}
	ask(0, "no agent runs here to ask for the VNI that the cluster has given it: start underlayd", ipam.CodeTryAgainLater)
}
