package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// A segment without a VNI of its configuration gets one for its name, once for the
// cluster. That takes two keys, a number's and a name's, and each change of the
// registry is one of a single key. So a number is taken first, then the name is
// bound to it, and then the number is settled; nobody is told of it before. What
// keeps two names from one number, and two numbers from one name, whoever stops in
// between and however late a change arrives:
//
//   - Number and name belong together by a token that is never used again: a
//     number that was lost does not come back to the name that lost it.
//   - A number is settled only while the name is bound to it, and as the very
//     revision that was read: a change of somebody who took it for left behind
//     comes too late then, or was there before, and the name is bound to another.
//   - A name is bound to another number only if it has lost its own, and one that
//     is settled is lost to Forget alone.

// attempts are how often an allocation begins anew because somebody else was at it.
const attempts = 32

var (
	// ErrNoName is returned for a name that has no VNI.
	ErrNoName = errors.New("there is no VNI of that name")
	// errAgain: somebody else was there first.
	errAgain = errors.New("again")
)

// VNIsError is returned when a tenant's range has no VNI left.
type VNIsError struct {
	Tenant string
	Range  record.VNIs
	// Names have so many of them, Networks and, by their configuration, Segments
	// others.
	Names, Networks, Segments int
}

func (e *VNIsError) Error() string {
	return fmt.Sprintf("tenant %q has no free VNI in %s: of %d, segments have %d by their name and %d by configurations, and networks %d; see underlayctl segment names, and widen it with underlayctl tenant vnis",
		e.Tenant, e.Range, e.Range.Last-e.Range.First+1, e.Names, e.Segments, e.Networks)
}

// CNICode asks the runtime to try again later.
func (e *VNIsError) CNICode() uint { return ipam.CodeTryAgainLater }

// VNI returns the VNI of a tenant's segment, which it has from the tenant's range
// since somebody asked first; prefer is taken then if it can be, 0 is none.
func (r Registry) VNI(ctx context.Context, tenant, name string, prefer int) (int, error) {
	if tenant == "" {
		return 0, (&View{}).Ranged(tenant)
	}
	if err := record.CheckSegmentName(tenant, name); err != nil {
		return 0, err
	}
	for range attempts {
		n, err := r.named(ctx, tenant, name)
		switch {
		case err != nil:
			return 0, fmt.Errorf("VNI of segment %q of tenant %q: %w", name, tenant, err)
		case n.ok && n.State == record.Settled:
			return n.VNI, nil
		case n.ok:
			n.State = record.Settled // nobody forgets what somebody asks for
			err = r.keep(ctx, record.NumberKey(n.VNI), n.number, n.Number)
		default:
			err = r.bind(ctx, tenant, name, n.name, prefer)
		}
		if err != nil && !errors.Is(err, errAgain) {
			return 0, fmt.Errorf("VNI of segment %q of tenant %q: %w", name, tenant, err)
		}
	}
	return 0, fmt.Errorf("VNI of segment %q of tenant %q: %w", name, tenant, ErrMoved)
}

// Join is VNI for an attachment that a node is about to make. That the node may have
// a part in the segment is written before: who forgets the name sees it, or else is
// seen here.
func (r Registry) Join(ctx context.Context, tenant, name string, prefer int, n lease.Node) (int, error) {
	for range attempts {
		vni, err := r.VNI(ctx, tenant, name, prefer)
		if err == nil {
			err = r.sign(ctx, n, vni)
		}
		if err != nil {
			return 0, err
		}
		again, err := r.VNI(ctx, tenant, name, prefer)
		if err != nil || again == vni {
			return again, err
		}
	}
	return 0, fmt.Errorf("VNI of segment %q of tenant %q: %w", name, tenant, ErrMoved)
}

// HasVNI says why a tenant's segment would get no VNI, but for a range that is
// exhausted, and which one it has; 0 is one that it has yet to get.
func (r Registry) HasVNI(ctx context.Context, tenant, name string) (int, error) {
	p, err := r.named(ctx, tenant, name)
	if err != nil || p.ok {
		return p.VNI, err
	}
	v, err := r.limits(ctx)
	if err != nil {
		return 0, err
	}
	return 0, v.Ranged(tenant)
}

// pair is a name and its number, of these revisions.
type pair struct {
	record.Number
	name, number lease.Rev
	// ok: they belong together.
	ok bool
}

func (r Registry) named(ctx context.Context, tenant, name string) (p pair, err error) {
	key := record.NameKey(tenant, name)
	item, err := r.Store.Get(ctx, key)
	if p.name = item.Rev; err != nil || p.name == 0 {
		return p, err
	}
	bound, err := record.DecodeNumber(item.Value)
	if err != nil {
		return p, fmt.Errorf("%w: %s: %w", ErrUnread, key, err)
	}
	p.Number = bound
	key = record.NumberKey(bound.VNI)
	item, err = r.Store.Get(ctx, key)
	if err != nil || item.Rev == 0 {
		return p, err
	}
	have, err := record.DecodeNumber(item.Value)
	if err != nil {
		return p, fmt.Errorf("%w: %s: %w", ErrUnread, key, err)
	}
	if have.Token == bound.Token {
		p.Number, p.number, p.ok = have, item.Rev, true
	}
	return p, nil
}

// keep writes a number at one of its keys.
func (r Registry) keep(ctx context.Context, key string, rev lease.Rev, n record.Number) error {
	a := r.Store.Swap(ctx, key, rev, record.EncodeNumber(n))
	if a.Outcome == Refused {
		return errAgain
	}
	return a.err()
}

// bind takes a number and binds the name, of that revision, to it.
func (r Registry) bind(ctx context.Context, tenant, name string, rev lease.Rev, prefer int) error {
	n, err := r.take(ctx, tenant, name, prefer)
	if err != nil {
		return err
	}
	err = r.keep(ctx, record.NameKey(tenant, name), rev, n)
	if errors.Is(err, errAgain) {
		return cmp.Or(r.giveBack(ctx, n), errAgain)
	}
	return err
}

// giveBack removes a number that its name is not bound to.
func (r Registry) giveBack(ctx context.Context, n record.Number) error {
	item, err := r.Store.Get(ctx, record.NumberKey(n.VNI))
	if err != nil || item.Rev == 0 {
		return err
	}
	have, err := record.DecodeNumber(item.Value)
	if err != nil || have.Token != n.Token || have.State != "" {
		return nil
	}
	p, err := r.named(ctx, n.Tenant, n.Name)
	if err != nil || p.ok && p.Token == n.Token {
		return err
	}
	if a := r.Store.Delete(ctx, item.Key, item.Rev); a.Outcome == Unknown {
		return a.err()
	}
	return nil
}

// take takes a number for a name that has none: one that was taken for it before,
// by somebody who came no further, or the lowest that is free.
func (r Registry) take(ctx context.Context, tenant, name string, prefer int) (n record.Number, err error) {
	v, err := r.limits(ctx)
	if err != nil {
		return n, err
	}
	if err := v.Ranged(tenant); err != nil {
		return n, err
	}
	full := &VNIsError{Tenant: tenant, Range: v.Tenants[tenant].Value.VNIs}
	members, err := r.members(ctx, v)
	if err != nil {
		return n, err
	}
	l, err := r.Store.List(ctx, record.NumberFolder)
	if err != nil {
		return n, err
	}
	taken := make(map[int]bool)
	var open []record.Number
	for _, i := range l.Items {
		have, err := record.DecodeNumber(i.Value)
		vni, _ := strconv.Atoi(strings.TrimPrefix(i.Key, record.NumberFolder))
		taken[vni] = true
		if full.Range.Has(vni) {
			full.Names++
		}
		own := have.Tenant == tenant && have.Name == name
		switch {
		case err != nil || have.VNI != vni:
		case own && have.State != "":
			return n, errAgain // somebody has been quicker
		case have.State != "" || !full.Range.Has(vni):
		case own:
			// Who is in it by a configuration is in another segment, unless it is
			// the one who asks.
			if _, is := v.Network(vni); vni != prefer && (is || len(members[vni]) > 0) {
				return n, cmp.Or(r.giveBack(ctx, have), errAgain)
			}
			return have, nil
		default:
			open = append(open, have)
		}
	}
	n = record.Number{Tenant: tenant, Name: name, Token: record.NewUUID()}
	if _, is := v.Network(prefer); !is && !taken[prefer] && full.Range.Has(prefer) {
		n.VNI = prefer
	}
	for vni := full.Range.First; n.VNI == 0 && vni <= full.Range.Last; vni++ {
		_, is := v.Network(vni)
		switch {
		case taken[vni]:
		case is:
			full.Networks++
		case len(members[vni]) > 0:
			full.Segments++
		default:
			n.VNI = vni
		}
	}
	if n.VNI != 0 {
		return n, r.keep(ctx, record.NumberKey(n.VNI), 0, n)
	}
	// Somebody may have left one behind for a name that nobody asks for again.
	for _, have := range open {
		if err := r.giveBack(ctx, have); err != nil {
			return n, err
		}
		if i, err := r.Store.Get(ctx, record.NumberKey(have.VNI)); err != nil || i.Rev == 0 {
			return n, cmp.Or(err, errAgain)
		}
	}
	return n, full
}

// limits reads what allocations go by: tenants, networks, removed nodes and
// whether the registry went back.
func (r Registry) limits(ctx context.Context) (*View, error) {
	var all List
	for _, prefix := range []string{record.ClusterKey, record.TenantFolder, record.NetworkFolder, record.GoneFolder} {
		l, err := r.Store.List(ctx, prefix)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		all.Items = append(all.Items, l.Items...)
	}
	v := NewView(all)
	if v.Cluster.Value.Frozen != nil {
		return nil, ErrFrozen
	}
	for key, err := range v.Unread {
		if strings.HasPrefix(key, record.NetworkFolder) || strings.HasPrefix(key, record.TenantFolder) {
			return nil, fmt.Errorf("%w: %s: %w", ErrUnread, key, err)
		}
	}
	return v, nil
}

// Ranged says why a tenant has no VNIs to give; nil if it has.
func (v *View) Ranged(tenant string) error {
	if v.Tenants[tenant].Value.VNIs != (record.VNIs{}) {
		return nil
	}
	if tenant == "" {
		return &ipam.FieldError{Place: "vni", Msg: `is missing, and so is "tenant": name the VNI, or the tenant whose range it is taken from`}
	}
	return &ipam.FieldError{Place: "vni", Msg: fmt.Sprintf("is missing, and tenant %q has no range to take one from; name the VNI, or give the range: underlayctl tenant vnis %s FIRST-LAST", tenant, tenant)}
}

// Names lists the segments that have a VNI by their name, by that VNI.
func (r Registry) Names(ctx context.Context) ([]record.Number, error) {
	l, err := r.Store.List(ctx, record.NumberFolder)
	if err != nil {
		return nil, fmt.Errorf("list the names of segments: %w", err)
	}
	out := []record.Number{}
	for _, i := range l.Items {
		n, err := record.DecodeNumber(i.Value)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrUnread, i.Key, err)
		}
		if n.State != "" {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b record.Number) int { return a.VNI - b.VNI })
	return out, nil
}

// Forget frees the VNI of a name that no node has a part in. It is marked first and
// counted then: a node that joins at the same moment sees the mark and takes it off,
// or is seen.
func (r Registry) Forget(ctx context.Context, tenant, name string) (n record.Number, err error) {
	p, err := r.named(ctx, tenant, name)
	what := fmt.Sprintf("segment %q of tenant %q", name, tenant)
	switch {
	case err != nil:
		return n, fmt.Errorf("%s: %w", what, err)
	case p.name == 0:
		return n, fmt.Errorf("%s: %w", what, ErrNoName)
	}
	n = p.Number
	n.State = ""
	if p.ok {
		marked := p.Number
		marked.State = record.Forgetting
		a := r.Store.Swap(ctx, record.NumberKey(n.VNI), p.number, record.EncodeNumber(marked))
		if err := a.err(); err != nil {
			return n, fmt.Errorf("%s: %w", what, err)
		}
		if used := r.unused(ctx, n); used != nil {
			marked.State = record.Settled
			// Whoever asked may have given up.
			back := r.Store.Swap(context.WithoutCancel(ctx), record.NumberKey(n.VNI), a.Rev, record.EncodeNumber(marked))
			if back.Outcome == Refused {
				return n, used // somebody has taken the mark off
			}
			return n, errors.Join(used, back.err())
		}
		if err := r.Store.Delete(ctx, record.NumberKey(n.VNI), a.Rev).err(); err != nil {
			return n, fmt.Errorf("%s: %w", what, err)
		}
	}
	// A name that has lost its number has none, whether or not this arrives.
	if a := r.Store.Delete(ctx, record.NameKey(tenant, name), p.name); a.Outcome == Unknown {
		return n, fmt.Errorf("%s: %w", what, a.err())
	}
	return n, nil
}

// unused says which nodes use a VNI.
func (r Registry) unused(ctx context.Context, n record.Number) error {
	v, err := r.View(ctx)
	if err != nil {
		return err
	}
	if v.Cluster.Value.Frozen != nil {
		return ErrFrozen
	}
	members, err := r.members(ctx, v)
	if err != nil || len(members[n.VNI]) == 0 {
		return err
	}
	e := &InUseError{What: fmt.Sprintf("VNI %d of segment %q of tenant %q", n.VNI, n.Name, n.Tenant)}
	names := v.names()
	for _, node := range members[n.VNI] {
		e.Others = append(e.Others, fmt.Sprintf("node %q may have attachments in it", cmp.Or(names[node], string(node))))
	}
	return e
}
