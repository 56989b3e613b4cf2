package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/nft"
	"github.com/underlay-cni/underlay/pkg/route"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

const (
	// patience is how long the registry's view may be busy.
	patience = 15 * time.Second
	// withdrawAfter is when peers are told that an address is gone: one that comes
	// back, as with a link that flaps, is worth no change on all nodes.
	withdrawAfter = 3 * time.Second
	// untoldAgain is when to try again to tell of a block that is lent.
	untoldAgain = 5 * time.Second
	// armedFor is how long an attachment has until it is on record.
	armedFor = 30 * time.Second
)

// due says what may have changed.
type due struct{ registry, host, ledger, answers bool }

// rounds does one for each change, and from time to time without. What came to
// nothing in one is due in the next.
func (t *Task) rounds(ctx context.Context, started func()) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var d due
	var rest time.Duration
	full := time.Now() // when all is due
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.conf.Cluster.Peers():
			d.registry = true
		case <-t.host:
			d.host = true
		case <-t.stirred:
			d.ledger = true
		case <-t.probes.changed:
			d.answers = true
		case <-timer.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(settle, rest)):
		}
		d.registry = d.registry || rang(t.conf.Cluster.Peers())
		d.host = d.host || rang(t.host)
		d.ledger = d.ledger || rang(t.stirred)
		began := time.Now()
		if !began.Before(full) {
			d, full = due{true, true, true, true}, began.Add(every)
		}
		var next time.Duration
		d, next = t.round(ctx, d)
		rest = min(maxGap, idle*time.Since(began))
		if t.last().synced != nil {
			started()
		}
		timer.Reset(min(next, time.Until(full)))
	}
}

func rang(bell <-chan struct{}) bool {
	select {
	case <-bell:
		return true
	default:
		return false
	}
}

func (t *Task) last() round {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now
}

// round looks at what is due, and has the kernel be as it follows; left is what
// to look at again, after next.
func (t *Task) round(ctx context.Context, d due) (left due, next time.Duration) {
	now := t.last()
	now.err = nil
	next = every
	fail := func(err error, due *bool) {
		if err != nil {
			now.err, next, *due = errors.Join(now.err, err), min(next, again), true
		}
	}
	defer func() {
		t.finish(now)
		t.news.Ring()
	}()
	anew := now.plan == nil
	if d.host {
		s, err := t.kernel.Read(ctx, t.parents.reach)
		if err == nil {
			anew = anew || !s.Equal(now.state)
			now.state, now.read = s, true
			if wait := t.readdress(s); wait > 0 {
				next, left.host = min(next, wait), true
			}
		}
		fail(err, &left.host)
	}
	if d.registry {
		s, err := t.take(ctx, now.snapshot)
		if now.away = err; err == nil {
			now.snapshot, anew = s, true
		}
		if errors.Is(err, context.DeadlineExceeded) {
			left.registry, next = true, min(next, again) // it is busy; else it is told when it is back
		}
	}
	if now.snapshot == nil || !now.read {
		return left, next
	}
	if d.ledger || now.masquerade == nil {
		m, err := t.masquerade()
		if err == nil {
			now.masquerade = m
		}
		fail(err, &left.ledger)
	}
	if anew || d.answers && now.snapshot.Choice() {
		before := now.plan
		now.plan = t.plan(ctx, now)
		anew = anew || !slices.Equal(wants(before), wants(now.plan))
	}
	// A device may have changed whatever else has not.
	overlaid := t.overlays.Apply(ctx, now.plan.Overlays)
	if anew {
		// What became of each is in the status.
		if now.snapshot.Partial {
			_ = t.routes.Amend(ctx, now.plan.Wants)
		} else {
			_ = t.routes.Apply(ctx, now.plan.Wants)
			overlaid = errors.Join(overlaid, t.overlays.Sweep(now.plan.Overlays))
		}
	}
	fail(overlaid, &left.host)
	routed := t.routes.Err()
	fail(routed, &left.ledger) // no more is needed for another look
	if now.masquerade != nil && !t.inherits(now) {
		// What is wrong with the rules is told apart, and tried again there.
		_ = t.rules.apply(ctx, t.ruleset(now))
	}
	now.deaf = t.forward(now)
	if !now.snapshot.Partial {
		fail(t.trim(ctx, now), &left.host)
	}
	if routed == nil && now.masquerade != nil {
		now.synced = make(map[string]bool)
		for _, n := range now.snapshot.Networks {
			now.synced[n.Name] = t.lacking(n) == ""
		}
		if !t.inherits(now) {
			fail(t.remember(now), &left.ledger)
		}
	}
	if now.untold = t.tell(now); now.untold != nil {
		next = min(next, untoldAgain)
	}
	return left, next
}

// plan plans. Where there is a choice the kernel is asked first for what it knows
// of neighbours that are new to it: an agent that starts must not change over to
// VXLAN and back.
func (t *Task) plan(ctx context.Context, now round) *plan.Plan {
	parents := t.parents.devs(now.state)
	p := plan.Make(now.snapshot, now.state, parents, t.probes.answer)
	if t.probes.want(p) && now.snapshot.Choice() {
		t.probes.read(ctx, t.kernel)
		p = plan.Make(now.snapshot, now.state, parents, t.probes.answer)
	}
	return p
}

func wants(p *plan.Plan) []route.Want {
	if p == nil {
		return nil
	}
	return p.Wants
}

// finish keeps what a round has come to, and logs what is new in it.
func (t *Task) finish(now round) {
	t.mu.Lock()
	before := t.now
	t.now = now
	t.mu.Unlock()
	if text(now.err) != text(before.err) && now.err != nil {
		t.log.Warn("routes and rules of networks", "err", now.err)
	}
	complaints := t.complain(now)
	for _, c := range complaints {
		if !slices.Contains(t.complaints, c) {
			t.log.Warn(c)
		}
	}
	t.complaints = complaints
}

// complain lists what an operator has to mend.
func (t *Task) complain(now round) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if now.read && len(t.addresses(now.state)) == 0 {
		say(`no interface of "parents" in underlayd.json has an address, or there is no default route: peers do not reach this node`)
	}
	if now.snapshot == nil {
		return out
	}
	if now.untold != nil {
		say("%v", now.untold)
	}
	out = append(out, now.deaf...)
	for _, n := range now.snapshot.Networks {
		if why := n.Why; why != "" {
			say("network %q: %s", n.Name, why)
		}
	}
	for _, name := range t.conf.Networks {
		if _, known := now.snapshot.Network(name); !known {
			say(`"networks" in underlayd.json names %q, which the registry does not know`, name)
		}
	}
	if odd := now.snapshot.Odd; len(odd) > 0 {
		kept := ""
		if now.snapshot.Partial {
			kept = "; nothing is known of it from before, so what is in the kernel stays until it can be read"
		}
		say("%d records about networks are skipped; see: underlayctl network status; the first one: %s%s", len(odd), odd[0], kept)
	}
	return out
}

// lacking says why there are no routes in a network; "" where there are.
func (t *Task) lacking(n plan.Network) string {
	if n.Why == "" && n.Backend == record.VXLAN {
		return text(t.overlays.Err(n.VNI))
	}
	return n.Why
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// take reads the registry.
func (t *Task) take(ctx context.Context, before *plan.Snapshot) (s *plan.Snapshot, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = t.conf.Cluster.Look(ctx, func(v *registry.View, me lease.Node) {
		s = plan.Take(v, me, t.conf.Networks, before)
	})
	return s, err
}

// readdress has the registry told of other addresses of this node; wait, unless
// 0, is when to look again at those that are gone.
func (t *Task) readdress(s hostnet.State) (wait time.Duration) {
	addrs := t.addresses(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	fewer := !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(t.addrs, a) })
	fewer = fewer && len(addrs) < len(t.addrs)
	switch {
	case !t.told:
		t.told = true
	case slices.Equal(addrs, t.addrs):
		t.lost = time.Time{}
		return 0
	case fewer && t.lost.IsZero():
		t.lost = time.Now()
		return withdrawAfter
	case fewer && time.Since(t.lost) < withdrawAfter:
		return withdrawAfter - time.Since(t.lost)
	case len(addrs) == 0:
		return 0 // peers have no better ones
	}
	t.addrs, t.lost = addrs, time.Time{}
	t.conf.Cluster.Stir()
	t.log.Info("peers reach this node at", "addrs", addrs)
	return 0
}

// masquerade are the networks of which this node has attachments that want it.
func (t *Task) masquerade() (map[string]bool, error) {
	out := make(map[string]bool)
	err := t.conf.Ledger.With(func(l *ledger.Ledger) error {
		return l.Attachments(func(a ipam.AttachmentRecord) error {
			if a.Uses.Network != "" && a.Uses.Masquerade {
				out[a.Uses.Network] = true
			}
			return nil
		})
	})
	if f := t.conf.SubnetFile; f != nil && f.IPMasq {
		out[f.Network] = true // the containers of others are on no record here
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, until := range t.armed {
		if time.Now().After(until) {
			delete(t.armed, name)
		} else {
			out[name] = true
		}
	}
	return out, err
}

func (t *Task) ruleset(r round) (want nft.Ruleset) {
	want.Forward = r.plan.Forward
	t.mu.Lock()
	want.Unopposed = t.unopposed
	t.mu.Unlock()
	for _, n := range r.snapshot.Networks {
		if r.masquerade[n.Name] {
			want.Masquerade = append(want.Masquerade, n.Prefixes...)
		}
	}
	if len(want.Masquerade) > 0 {
		want.Nodes = r.plan.Nodes
	}
	var known bool
	want.Ports, want.VTEPs, known = t.conf.Guard()
	if len(r.plan.Overlays) > 0 {
		want.VTEPs = append(want.VTEPs, r.plan.Nodes...)
	}
	blind := r.snapshot.Blind()
	for _, o := range r.plan.Overlays {
		switch port := uint16(o.Device.Port); {
		case blind: // and what an earlier agent has set goes on with that node
			want.Ports = slices.DeleteFunc(want.Ports, func(p uint16) bool { return p == port })
		case known: // or others that use the port would be cut off
			want.Ports = append(want.Ports, port)
		}
	}
	slices.Sort(want.Ports)
	want.Ports = slices.Compact(want.Ports)
	return want
}

// forward has the host pass on what comes in from peers, or says why it does not.
func (t *Task) forward(r round) (deaf []string) {
	if !slices.ContainsFunc(r.snapshot.Networks, func(n plan.Network) bool { return n.Why == "" }) {
		return nil
	}
	six := slices.ContainsFunc(r.plan.Forward, func(p netip.Prefix) bool { return p.Addr().Is6() })
	devs := slices.Clone(r.plan.Devs)
	for _, dev := range t.parents.devs(r.state) {
		if _, there := r.state.Link(dev); there && !slices.Contains(devs, dev) {
			devs = append(devs, dev)
		}
	}
	for _, o := range r.plan.Overlays {
		if t.overlays.Err(o.Device.VNI) != nil { // which is told elsewhere
			devs = slices.DeleteFunc(devs, func(dev string) bool { return dev == vxlan.Name(o.Device.VNI) })
		}
	}
	for _, dev := range devs {
		changed, err := t.kernel.Forward(dev, six)
		if len(changed) > 0 {
			t.log.Info("the host forwards what comes in by an interface", "dev", dev, "sysctl", changed)
		}
		if err != nil {
			deaf = append(deaf, fmt.Sprintf("peers do not reach this node's containers: %v", err))
		}
	}
	return deaf
}
