package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Members are the parts that nodes have in one VXLAN segment, at one moment. One
// that is handed out does not change.
type Members struct {
	VNI int
	// Rev of the moment.
	Rev lease.Rev
	// Nodes that have a record. One whose record cannot be read has what it said
	// before, if that is known.
	Nodes map[lease.Node]Member
	// Unread has, by key, why a value was skipped.
	Unread map[string]error
}

// Member is a node's part in a segment.
type Member struct {
	record.Segment
	// Rev of the record.
	Rev lease.Rev
	// Since has, by MAC, the revision that an endpoint came with: of two that are
	// the same, the later one has moved.
	Since map[string]lease.Rev
}

// newMembers makes Members of a full list. Before, unless nil, is what was known.
func newMembers(vni int, l List, before *Members) *Members {
	m := &Members{VNI: vni, Rev: l.Rev, Nodes: make(map[lease.Node]Member, len(l.Items)), Unread: make(map[string]error)}
	if before == nil {
		before = &Members{}
	}
	for _, i := range l.Items {
		m.apply(i, before.Nodes)
	}
	return m
}

// with is what the members are after a batch.
func (m *Members) with(b Batch) *Members {
	next := &Members{VNI: m.VNI, Rev: max(m.Rev, b.Rev), Nodes: maps.Clone(m.Nodes), Unread: maps.Clone(m.Unread)}
	for _, i := range b.Items {
		next.apply(i, next.Nodes)
	}
	return next
}

// apply takes in a value. Before has what was known of nodes.
func (m *Members) apply(i Item, before map[lease.Node]Member) {
	delete(m.Unread, i.Key)
	vni, node, ok := record.ParseSegmentKey(i.Key)
	if !ok || vni != m.VNI {
		if i.Value != nil {
			m.Unread[i.Key] = errors.New("the key names no node")
		}
		return
	}
	if i.Value == nil {
		delete(m.Nodes, node)
		return
	}
	was, known := before[node]
	s, err := record.DecodeSegment(i.Value)
	if err == nil && (s.VNI != vni || s.Node != node) {
		err = fmt.Errorf("is the record of %s in VNI %d", s.Node, s.VNI)
	}
	if err != nil {
		if m.Unread[i.Key] = err; known {
			m.Nodes[node] = was
		}
		return
	}
	next := Member{Segment: s, Rev: i.Rev, Since: make(map[string]lease.Rev, len(s.Endpoints))}
	for _, e := range s.Endpoints {
		next.Since[e.MAC] = i.Rev
		// A registry that went back has lower revisions, and those hold.
		if since, there := was.Since[e.MAC]; there && since < i.Rev {
			next.Since[e.MAC] = since
		}
	}
	m.Nodes[node] = next
}

// Members reads who is in a segment.
func (r Registry) Members(ctx context.Context, vni int, before *Members) (*Members, error) {
	l, err := r.Store.List(ctx, record.SegmentKeys(vni))
	if err != nil {
		return nil, fmt.Errorf("list the segment of VNI %d: %w", vni, err)
	}
	return newMembers(vni, l, before), nil
}

// FollowSegment calls f with who is in a segment, as a list has it, and again
// after each change, until ctx ends or f returns an error. A watch that breaks, or
// cannot go on from where it was, leads to a full new list; what is not in that is
// gone. pause is as in Follow.
func (r Registry) FollowSegment(ctx context.Context, vni int, pause func(ctx context.Context, err error, failures int) error, f func(*Members) error) error {
	failures := 0
	var m *Members
	for {
		next, err := r.Members(ctx, vni, m)
		if err == nil {
			failures, m = 0, next
			own := f(m)
			if own == nil {
				err = r.Store.Watch(ctx, record.SegmentKeys(vni), m.Rev, func(b Batch) error {
					m = m.with(b)
					own = f(m)
					return own
				})
			}
			if own != nil {
				return own
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failures++
		if err := pause(ctx, err, failures); err != nil {
			return err
		}
	}
}

// PutSegment writes a node's own part in a segment, unless it is there. That the
// node may have one is written before.
func (r Registry) PutSegment(ctx context.Context, s record.Segment) error {
	value := record.EncodeSegment(s)
	if _, err := record.DecodeSegment(value); err != nil {
		return err
	}
	err := r.edit(ctx, record.SegmentKey(s.VNI, s.Node), func(i Item) ([]byte, error) {
		if i.Rev == 0 {
			return value, r.sign(ctx, s.Node, s.VNI)
		}
		if bytes.Equal(i.Value, value) {
			return nil, nil
		}
		return value, nil
	})
	if err != nil {
		return fmt.Errorf("publish this node's part in the segment of VNI %d: %w", s.VNI, err)
	}
	return nil
}

// sign says that a node may have a part in a segment. It is written also where it
// is there: a deletion of before, of which nobody knows whether it arrives, comes
// too late then.
func (r Registry) sign(ctx context.Context, n lease.Node, vni int) error {
	return r.edit(ctx, record.MemberKey(n, vni), func(Item) ([]byte, error) { return []byte("{}"), nil })
}

// DeleteSegment withdraws a node's part in a segment: its own, or that of one that
// was removed. That it is not there is no error.
func (r Registry) DeleteSegment(ctx context.Context, vni int, n lease.Node) error {
	err := r.remove(ctx, record.SegmentKey(vni, n))
	if err == nil {
		err = r.remove(ctx, record.MemberKey(n, vni))
	}
	if err != nil {
		return fmt.Errorf("withdraw node %s from the segment of VNI %d: %w", n, vni, err)
	}
	return nil
}

// SegmentsOf lists the VNIs that a node may have a part in.
func (r Registry) SegmentsOf(ctx context.Context, n lease.Node) (vnis []int, err error) {
	l, err := r.Store.List(ctx, record.MemberKeys(n))
	if err != nil {
		return nil, fmt.Errorf("list the segments of node %s: %w", n, err)
	}
	for _, i := range l.Items {
		if _, vni, ok := record.ParseMemberKey(i.Key); ok {
			vnis = append(vnis, vni)
		}
	}
	slices.Sort(vnis)
	return vnis, nil
}

// leaveSegments withdraws a removed node from all that it was in.
func (r Registry) leaveSegments(ctx context.Context, n lease.Node) error {
	vnis, err := r.SegmentsOf(ctx, n)
	errs := []error{err}
	for _, vni := range vnis {
		errs = append(errs, r.DeleteSegment(ctx, vni, n))
	}
	return errors.Join(errs...)
}

// Network returns the network that has a VNI, if there is one: such a VNI is no
// segment.
func (v *View) Network(vni int) (record.Network, bool) {
	for _, n := range v.Networks {
		if n.Value.VNI == vni {
			return n.Value, true
		}
	}
	return record.Network{}, false
}

// noSegment says why the VNI of a network is taken: nodes have attachments in the
// segment of that VNI. Those of nodes that were removed do not count.
func (r Registry) noSegment(ctx context.Context, v *View, n record.Network) error {
	if n.VNI == 0 {
		return nil
	}
	m, err := r.Members(ctx, n.VNI, nil)
	if err != nil {
		return err
	}
	var others []string
	for node, s := range m.Nodes {
		if _, gone := v.Gone[node]; !gone {
			others = append(others, fmt.Sprintf("node %q has attachments in it", label(s.Segment)))
		}
	}
	for key, why := range m.Unread {
		others = append(others, fmt.Sprintf("%s cannot be read: %v", key, why))
	}
	if len(others) == 0 {
		return nil
	}
	slices.Sort(others)
	return &InUseError{What: fmt.Sprintf("VNI %d, as a segment,", n.VNI), Others: others}
}

// members tells by VNI which nodes, but those that were removed, may have a part in
// its segment.
func (r Registry) members(ctx context.Context, v *View) (map[int][]lease.Node, error) {
	l, err := r.Store.List(ctx, record.MemberFolder)
	if err != nil {
		return nil, fmt.Errorf("list who is in segments: %w", err)
	}
	out := make(map[int][]lease.Node)
	for _, i := range l.Items {
		if n, vni, ok := record.ParseMemberKey(i.Key); ok {
			if _, gone := v.Gone[n]; !gone {
				out[vni] = append(out[vni], n)
			}
		}
	}
	return out, nil
}

// noName says why the VNI of a network is taken: a segment has it by its name.
func (r Registry) noName(ctx context.Context, n record.Network) error {
	if n.VNI == 0 {
		return nil
	}
	item, err := r.Store.Get(ctx, record.NumberKey(n.VNI))
	if err != nil || item.Rev == 0 {
		return err
	}
	have, err := record.DecodeNumber(item.Value)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnread, item.Key, err)
	}
	if have.State == "" {
		// Nobody has been told of it yet, and of one that was left nobody will be.
		if err := r.giveBack(ctx, have); err != nil {
			return err
		}
		if item, err = r.Store.Get(ctx, item.Key); err != nil || item.Rev == 0 {
			return err
		}
	}
	return &InUseError{What: fmt.Sprintf("VNI %d", n.VNI), Others: []string{
		fmt.Sprintf("segment %q of tenant %q has it by its name (underlayctl segment forget %s --tenant %s frees it)", have.Name, have.Tenant, have.Name, have.Tenant)}}
}

// label is a node for people.
func label(s record.Segment) string {
	if s.Name != "" {
		return s.Name
	}
	return string(s.Node)
}
