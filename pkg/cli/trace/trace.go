// Package trace follows a packet from an address of this node to any other, hop
// by hop, and says where the kernel would do something else than the network
// wants. What is wanted is the ledger's, for attachments of this node, and the
// agent's, for blocks of others; what is so is what the kernel answers. No packet
// is sent: a neighbour's silence is known only where the agent has asked.
//
// It looks at this node alone. A way ends where another node takes over, which
// `underlayctl trace` there goes on with.
package trace

import (
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/link"
)

// Trace is the way from one address to another.
type Trace struct {
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
	// Hops in words, the first is whose From is.
	Hops []string `json:"hops"`
	// Reached: To is there, or the next node takes over.
	Reached bool `json:"reached"`
	// Reason says why it is not.
	Reason string `json:"reason,omitempty"`
	// Differs lists what the kernel has otherwise than it is wanted.
	Differs []Difference `json:"differs"`
	// Unknown says what could not be asked.
	Unknown string `json:"unknown,omitempty"`
}

// Difference is what is wanted, what is so, and what to do.
type Difference struct {
	Want string `json:"want"`
	Have string `json:"have"`
	Do   string `json:"do"`
}

// end is what is known of one of the two addresses.
type end struct {
	addr netip.Addr
	// record, of an address that a container of this node holds, with the link
	// that it is on, and that link's parent's name.
	record *ipam.Record
	uses   ipam.Uses
	link   link.Link
	parent string
	// path is how this node would send to it, and answer what is known of the
	// neighbour there.
	path   link.Path
	answer hostnet.Answer
	// peer in whose block of a network it is, if so; network where it is in a
	// block of this node.
	peer    *api.Peer
	network string
	// owner is the node that leases it in a pool whose addresses may be on any.
	owner string
}

// facts are all that a trace follows from.
type facts struct {
	node     string
	from, to end
	// segment is the VXLAN segment that the first one is in, as far as it is known.
	segment *api.SegmentDetail
	// unknown says why nothing is known of peers, leases and segments.
	unknown error
}

func (e end) String() string {
	switch {
	case e.record != nil:
		return fmt.Sprintf("container %s, %s of network %s", e.record.Attachment.ContainerID, e.record.Attachment.IfName, e.record.Attachment.Network)
	case e.path.Own:
		return "this host"
	}
	return e.addr.String()
}

// follow finds the way.
func follow(f facts) Trace {
	t := Trace{From: f.from.addr, To: f.to.addr, Differs: []Difference{}}
	if f.unknown != nil {
		t.Unknown = f.unknown.Error()
	}
	t.hop("%s has %s", f.from, f.from.addr)
	switch kind := f.from.link.Kind; {
	case f.from.record == nil:
		t.route(f)
	case kind == "macvlan" || kind == "ipvlan" && f.from.link.Mode == "l2":
		t.segment(f)
	case kind == "ipvlan":
		t.hop("%s: this host's routes, by %s alone (mode %s)", f.node, f.from.parent, f.from.link.Mode)
		t.route(f)
	default:
		t.hostEnd(f.from)
		t.hop("%s: this host's routes", f.node)
		t.route(f)
	}
	return t
}

func (t *Trace) hop(format string, args ...any) {
	t.Hops = append(t.Hops, fmt.Sprintf(format, args...))
}

func (t *Trace) arrive(format string, args ...any) {
	t.hop(format, args...)
	t.Reached = true
}

func (t *Trace) fail(format string, args ...any) { t.Reason = fmt.Sprintf(format, args...) }

func (t *Trace) differ(want, have, do string) {
	t.Differs = append(t.Differs, Difference{want, have, do})
}

// hostEnd compares the host's route to a container of ours with its pair.
func (t *Trace) hostEnd(e end) {
	want, have := link.PeerName(e.record.Attachment.String()), out(e.path)
	if e.path.Link.Name == want || e.path.Link.Kind == "bridge" {
		return
	}
	if e.path.Link.Kind == "veth" && e.path.Connected {
		return // another plugin's pair
	}
	t.differ(fmt.Sprintf("%s leaves by the container's pair, %s", e.addr, want), have, "delete the container's attachment and add it again")
}

// out is a path in words.
func out(p link.Path) string {
	switch {
	case p.Own:
		return "the host takes it for its own"
	case p.Link.Name == "":
		return "no route"
	case p.Via.IsValid():
		return fmt.Sprintf("via %s dev %s", p.Via, p.Link.Name)
	}
	return "dev " + p.Link.Name
}

// route goes by this host's routing table.
func (t *Trace) route(f facts) {
	to := f.to
	switch {
	case to.record != nil:
		t.local(f)
		t.listen(to)
	case to.path.Own:
		t.arrive("this host has %s", to.addr)
	case to.peer != nil:
		t.peer(to)
		t.listen(to)
	case to.network != "":
		t.fail("%s is in a block of this node, of network %s, and no container has it", to.addr, to.network)
	case to.path.Link.Name == "":
		t.fail("this host has no route to %s", to.addr)
	default:
		how := ""
		if f.from.uses.Masquerade {
			how = ", masqueraded unless that is a node's or a container's"
		}
		t.arrive("%s leaves %s%s", to.addr, out(to.path), how)
		t.listen(to)
	}
}

// listen says whether the neighbour that the host would send to answers, as far as
// the kernel has found out.
func (t *Trace) listen(to end) {
	if !t.Reached || to.answer == hostnet.Found {
		return
	}
	n, _ := neighbour(to.path, to.addr)
	switch to.answer {
	case hostnet.Silent:
		t.Reached = false
		t.fail("nobody answers at %s on %s: the neighbour's entry there is FAILED", n.Addr, n.Dev)
	case hostnet.Asking:
		if t.Unknown != "" {
			t.Unknown += "; "
		}
		t.Unknown += fmt.Sprintf("whether %s on %s answers: the neighbour's entry there is INCOMPLETE, which in three seconds it will not be any more", n.Addr, n.Dev)
	}
}

// neighbour is who gets what the host sends to an address; ok is false where that is
// nobody on a link.
func neighbour(p link.Path, to netip.Addr) (n hostnet.Neighbour, ok bool) {
	n = hostnet.Neighbour{Dev: p.Link.Name, Addr: to}
	if p.Via.IsValid() {
		n.Addr = p.Via
	}
	return n, !p.Own && n.Dev != ""
}

// local is the way to a container of this node.
func (t *Trace) local(f facts) {
	to := f.to
	switch to.link.Kind {
	case "macvlan", "ipvlan":
		if !to.uses.HostAccess && to.link.Mode != "l3" && to.link.Mode != "l3s" {
			t.fail(`the kernel passes nothing between %s and its own children; "hostAccess": true in the network's configuration opens that way`, to.parent)
			return
		}
		if to.path.Link.Kind != to.link.Kind && to.uses.HostAccess {
			t.differ(fmt.Sprintf("%s leaves by the host's sibling on %s", to.addr, to.parent), out(to.path), "delete the container's attachment and add it again")
			t.fail("the host's route to the container is another")
			return
		}
	default:
		before := len(t.Differs)
		if t.hostEnd(to); len(t.Differs) > before {
			t.fail("the host's route to the container is another")
			return
		}
	}
	t.arrive("%s has %s, %s", to, to.addr, out(to.path))
}

// peer is the way to another node's block.
func (t *Trace) peer(to end) {
	p := to.peer
	name := p.Name
	if name == "" {
		name = p.Node
	}
	wanted := fmt.Sprintf("via %s dev %s", p.Via, p.Dev)
	switch p.State {
	case api.PeerUnreachable:
		t.fail("%s is in a block of %s, to which there is no way: %s", to.addr, name, p.Reason)
		return
	case api.PeerSilent:
		t.hop("peer %s, %s, network %s", name, wanted, p.Network)
		t.fail("nobody answers at %s: %s", p.Address, p.Reason)
	case api.PeerVXLAN:
		why := ""
		if p.Reason != "" {
			why = ": " + p.Reason
		}
		t.hop("%s, VXLAN%s", wanted, why)
		t.hop("peer %s, VTEP %s, network %s", name, p.Address, p.Network)
		t.Reached = true
	default:
		t.hop("peer %s, %s, network %s", name, wanted, p.Network)
		t.Reached = true
	}
	if have := to.path; have.Via != p.Via || have.Link.Name != p.Dev {
		do := "the agent puts it right; see: underlayctl peer list, and the log of underlayd"
		if have.Link.Name != "" && have.Via.IsValid() {
			do = fmt.Sprintf("see whose the route is: ip route get %s", to.addr)
		}
		t.differ(wanted, out(have), do)
		t.Reached = false
		t.fail("this host's route to %s is another", to.addr)
	}
}

// segment goes by the link layer that the parent is on.
func (t *Trace) segment(f facts) {
	from, to := f.from, f.to
	on := fmt.Sprintf("%s: %s %s on %s", f.node, from.link.Kind, setting(from.link), from.parent)
	near := from.record.Address.Contains(to.addr)
	switch {
	case to.record != nil && to.parent == from.parent && to.link.Kind == from.link.Kind && near:
		t.hop("%s", on)
		t.sibling(f)
	case to.path.Own:
		t.hop("%s", on)
		if !from.uses.HostAccess {
			t.fail(`the kernel passes nothing between %s and its own children; "hostAccess": true in the network's configuration opens that way`, from.parent)
			return
		}
		t.arrive("this host has %s", to.addr)
	case near && from.uses.Segment.VNI != 0:
		t.hop("%s", on)
		t.inSegment(f)
	case near:
		t.hop("%s", on)
		if to.owner != "" && to.owner != f.node {
			t.arrive("on the wire; node %s has %s", to.owner, to.addr)
			return
		}
		t.arrive("on the wire, whoever has %s; no container of this node does", to.addr)
	case !from.record.Gateway.IsValid():
		t.hop("%s", on)
		t.fail("%s is in another subnet than %s, and that has no gateway", to.addr, from.record.Address)
	default:
		t.hop("%s", on)
		t.arrive("on the wire, gateway %s, unless the container has a route of its own", from.record.Gateway)
	}
}

func setting(l link.Link) string {
	if l.Kind == "ipvlan" {
		return l.Mode + " " + l.Flag
	}
	return l.Mode
}

// sibling is the way between children of one parent.
func (t *Trace) sibling(f facts) {
	for _, l := range []link.Link{f.from.link, f.to.link} {
		how := l.Mode
		if l.Kind == "ipvlan" {
			how = l.Flag
		}
		switch how {
		case "bridge":
			continue
		case "vepa":
			t.hop("the switch, which has to send back what came from the port (hairpin)")
		default:
			t.fail("children of %s do not meet in mode %s", f.from.parent, how)
			return
		}
		break
	}
	t.arrive("%s has %s, a sibling on %s", f.to, f.to.addr, f.to.parent)
}
