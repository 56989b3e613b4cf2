// Package arp tells the neighbours of an interface about its addresses and
// finds out who else uses them: announcements and conflict probes, by ARP (RFC
// 5227) for IPv4 and by neighbour discovery (RFC 4861, 4862, 7527) for IPv6.
//
// An address may be probed before the interface has it. A raw socket listens
// from Open on, so what is heard while the caller does other work waits in its
// queue. The package judges each frame by itself: it keeps no table of
// neighbours, and does not defend an address once taken.
//
// What answers a slave of an ipvlan goes to the MAC that it shares with its
// parent, for an address that it does not have yet: only the parent hears it.
// So Open on the parent. A probe may leave from there as well, even before the
// slave exists: that of a slave is the same to the wire, but first waits in a
// work queue of the parent, at times for milliseconds. It does reach the other
// slaves, whose addresses the kernel refuses to give to a second one in any
// case. Announcements should leave From the slave, for the other slaves to hear.
//
// The host itself hears nothing that leaves from its own interfaces or from
// their children: the caller has to know which addresses are the host's own.
//
// Sockets belong to the network namespace that the thread which calls Open or
// From is in. Nothing here starts a goroutine.
package arp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// RFC 5227, section 1.1.
const (
	probeWait    = time.Second     // the first probe leaves at a random time up to this
	probeNum     = 3               // number of probes
	probeMin     = time.Second     // shortest time from probe to probe
	probeMax     = 2 * time.Second // longest time from probe to probe
	announceWait = 2 * time.Second // silence after the last probe that makes the address ours
)

// Iface is an interface of the calling thread's network namespace. All fields
// are required.
type Iface struct {
	Name  string
	Index int
	MAC   net.HardwareAddr // six bytes
}

// Conflict says who else uses an address, or is about to.
type Conflict struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
}

// Prober listens on one interface and sends from the same or another one, for
// a fixed list of addresses. It is for one goroutine at a time.
type Prober struct {
	heard string // name of the interface that is listened on
	from  string // name of the one that frames leave from
	mac   mac    // of that one
	addrs []netip.Addr
	nonce mac
	wire  wire
	// assigned: frames that claim the addresses may be our own.
	assigned bool
	// claims: those who only ask are no conflict.
	claims bool

	// Tests of the RFC's waits have a clock and chance of their own.
	now    func() time.Time
	random func(below time.Duration) time.Duration
}

// wire carries whole Ethernet frames.
type wire interface {
	// sendFrom makes an interface the one that send sends from.
	sendFrom(index int) error
	send(frame []byte) error
	// receive puts the next frame that has come in into buf, cut to its
	// length, and returns the length, or 0 if there is none. It never blocks.
	receive(buf []byte) (int, error)
	// await returns when a frame has come in, after d, or earlier.
	await(d time.Duration) error
	close() error
}

// Open binds a raw socket to the interface and starts to listen for other
// users of addrs: unicast, without zone, at least one. The link may still be
// down, but must be up to send. It is an error if the interface is not
// Ethernet or has no MAC.
func Open(ifc Iface, addrs []netip.Addr) (*Prober, error) {
	p, err := newProber(ifc, addrs)
	if err != nil {
		return nil, err
	}
	if p.wire, err = dial(ifc.Index, groups(p.addrs)); err != nil {
		return nil, fmt.Errorf("interface %q: %w", ifc.Name, err)
	}
	return p, nil
}

// newProber checks what it is given and leaves out only the wire.
func newProber(ifc Iface, addrs []netip.Addr) (*Prober, error) {
	p := &Prober{heard: ifc.Name, from: ifc.Name, now: time.Now, random: rand.N[time.Duration]}
	var err error
	if p.mac, err = ifc.mac(); err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("interface %q: no addresses to probe for", ifc.Name)
	}
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a == broadcast || a.Zone() != "" {
			return nil, fmt.Errorf("interface %q: not a unicast address without zone: %q", ifc.Name, a)
		}
		p.addrs = append(p.addrs, a)
	}
	copy(p.nonce[:], binary.NativeEndian.AppendUint64(nil, rand.Uint64()))
	return p, nil
}

func (ifc Iface) mac() (m mac, err error) {
	if copy(m[:], ifc.MAC) != len(ifc.MAC) || m == (mac{}) {
		return mac{}, fmt.Errorf("interface %q: no Ethernet address: %q", ifc.Name, ifc.MAC)
	}
	return m, nil
}

// From has the frames from now on leave from another interface, with its MAC.
// What is listened on is still that of Open, perhaps in another namespace. If
// their MACs differ, call From before Probe, lest what has been sent under the
// first MAC comes back and passes for somebody else's. After an error, all is
// as before.
func (p *Prober) From(ifc Iface) error {
	m, err := ifc.mac()
	if err != nil {
		return err
	}
	if err := p.wire.sendFrom(ifc.Index); err != nil {
		return fmt.Errorf("interface %q: %w", ifc.Name, err)
	}
	p.from, p.mac = ifc.Name, m
	return nil
}

// Probe asks once for each address whether anybody has it: an ARP probe with
// sender 0.0.0.0, or a neighbour solicitation from ::, as in duplicate address
// detection.
//
// That one is answered to all nodes, and multicast waits in the queue of a
// macvlan's parent, at times for longer than there is time to listen. So there
// is a second one, from the interface's link-local address, whose answer is
// unicast.
func (p *Prober) Probe() error {
	for _, a := range p.addrs {
		frames := [][]byte{arpProbe(p.mac, a)}
		if a.Is6() {
			frames = [][]byte{ndProbe(p.mac, a, p.nonce), ndAsk(p.mac, a)}
		}
		for _, f := range frames {
			if err := p.wire.send(f); err != nil {
				return fmt.Errorf("probe %s on %q: %w", a, p.from, err)
			}
		}
	}
	return nil
}

// Conflicts reads what has come in since Open or the last call, and for up to
// wait more; 0 does not block. It returns as soon as it has found anything:
// each address and MAC once, in the order heard. A conflict is a foreign ARP
// message whose sender has one of the addresses, a foreign ARP probe or
// duplicate address detection for one, or a neighbour advertisement of one.
func (p *Prober) Conflicts(wait time.Duration) ([]Conflict, error) {
	return p.listen(context.Background(), wait)
}

// Thorough probes with the counts and waits of RFC 5227, section 2.1.1: four
// to seven seconds, less when it stops at a conflict. If ctx ends first, the
// error wraps that of ctx, and nothing is known of the addresses.
func (p *Prober) Thorough(ctx context.Context) ([]Conflict, error) {
	pause := p.random(probeWait)
	for i := range probeNum {
		if found, err := p.listen(ctx, pause); err != nil || len(found) > 0 {
			return found, err
		}
		if err := p.Probe(); err != nil {
			return nil, err
		}
		if i < probeNum-1 {
			pause = probeMin + p.random(probeMax-probeMin)
		}
	}
	return p.listen(ctx, announceWait)
}

// Assigned says that the interface has the addresses from now on: its kernel
// answers for them, and a switch may send that back.
func (p *Prober) Assigned() { p.assigned = true }

// ClaimsOnly says that nobody is about to take the addresses here: that somebody
// else asks for one, perhaps for the same reason as we do, is no conflict.
func (p *Prober) ClaimsOnly() { p.claims = true }

// Announce tells the neighbours that the addresses are at this interface now:
// gratuitous ARP in request and in reply form, since there are hosts that heed
// only one of them, and an unsolicited neighbour advertisement that overrides
// what was known. It goes on after an error and returns all of them.
//
// arping.GratuitousArpOverIface would send the request form, from a socket of
// its own; closing that one takes longer than the rest of an ADD (see
// release). Its Ping is what the tests ask for addresses with.
func (p *Prober) Announce() error {
	p.assigned = true
	var errs []error
	for _, a := range p.addrs {
		frames := [][]byte{arpAnnounce(p.mac, a), arpReply(p.mac, a)}
		if a.Is6() {
			frames = [][]byte{ndAnnounce(p.mac, a)}
		}
		for _, f := range frames {
			if err := p.wire.send(f); err != nil {
				errs = append(errs, fmt.Errorf("announce %s on %q: %w", a, p.from, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Close stops listening. What came in and was not read is lost.
func (p *Prober) Close() error { return p.wire.close() }

// listen is Conflicts until ctx ends.
func (p *Prober) listen(ctx context.Context, wait time.Duration) ([]Conflict, error) {
	// A context has no descriptor to wait for beside the socket, and plugins
	// give theirs a deadline: looking at it now and then is enough.
	const look = 50 * time.Millisecond
	for end := p.now().Add(wait); ; {
		if found, err := p.drain(); err != nil || len(found) > 0 {
			return found, err
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("listen on %q: %w", p.heard, err)
		}
		left := end.Sub(p.now())
		if left <= 0 {
			return nil, nil
		}
		if err := p.wire.await(min(left, look)); err != nil {
			return nil, fmt.Errorf("listen on %q: %w", p.heard, err)
		}
	}
}

// drain judges the frames in the queue.
func (p *Prober) drain() ([]Conflict, error) {
	// Of frames this small, a socket queues a few hundred. The bound keeps a
	// flood from holding us here.
	const most = 1000
	var found []Conflict
	var buf [2048]byte
	for range most {
		n, err := p.wire.receive(buf[:])
		if err != nil {
			return found, fmt.Errorf("listen on %q: %w", p.heard, err)
		}
		if n == 0 {
			break
		}
		if c, ok := p.judge(buf[:n]); ok && !slices.ContainsFunc(found, c.equal) {
			found = append(found, c)
		}
	}
	return found, nil
}

// judge says whether a frame shows another user of one of the addresses.
func (p *Prober) judge(frame []byte) (Conflict, bool) {
	c, ok := parse(frame)
	// Switches and access points send our own frames back to us, some under a
	// MAC of theirs: then the ARP sender or the nonce (RFC 7527) tells. What we
	// have not sent yet comes from somebody who has our MAC as well, be it the
	// copy of a virtual machine or, where we are a slave of an ipvlan, another
	// slave: its answer the kernel hands to the parent as if it had come from
	// the wire. So it makes no difference whether our MAC is known to be shared.
	// A probe under our MAC always passes for our own: else no address could be
	// had behind a switch that sends it back.
	own := c.source == p.mac || c.holder == p.mac || bytes.Equal(c.nonce, p.nonce[:])
	sent := c.probe || p.assigned
	if !ok || p.claims && c.probe || own && sent || !slices.Contains(p.addrs, c.addr) {
		return Conflict{}, false
	}
	return Conflict{Addr: c.addr, MAC: c.holder[:]}, true
}

func (c Conflict) equal(d Conflict) bool {
	return c.Addr == d.Addr && bytes.Equal(c.MAC, d.MAC)
}
