package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
)

const (
	stormRounds  = 1000
	stormWorkers = 8
	// Each worker has two containers, and uses one while in the other there may
	// be what a call that died has left.
	stormContainers = 2 * stormWorkers
	// stormPool has one address more than there are containers.
	stormPool = `{"type": "underlay", "ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.26"}],
		[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10", "rangeEnd": "2001:db8::20"}]]}`
)

// TestCrashStorm kills ADDs and DELs of eight workers on one host that has
// hardly more addresses than they need. It does not run beside other tests of
// this package. CRASH_SEED repeats the choices of a run, though not its timing.
func TestCrashStorm(t *testing.T) {
	rounds := stormRounds
	if testing.Short() {
		rounds /= 10
	}
	s := newStorm(t)
	began := time.Now()
	next := make(chan int)
	var wg sync.WaitGroup
	for w := range stormWorkers {
		wg.Go(func() {
			for round := range next {
				c := s.containers[2*w+round%2]
				if t.Failed() {
					continue
				}
				if err := s.round(c, round); err != nil {
					t.Errorf("round %d in %s: %v", round, c.ID, err)
				}
			}
		})
	}
	for round := range rounds {
		next <- round
	}
	close(next)
	wg.Wait()

	t.Logf("seed %d, %v: %d ADDs succeeded, and in %d of %d rounds a plugin died: %s",
		s.seed, time.Since(began).Round(time.Second), s.added.Load(), s.died.Load(), rounds, &s.kills)
	if t.Failed() {
		return // in the middle of rounds
	}
	var all []*lab.Namespace
	for _, c := range s.containers {
		wantOK(t, "what is left to do in "+c.ID, c.settle())
		all = append(all, c.Namespace)
	}
	wantNothing(t, s.h, s.before, all...)
	if int(s.died.Load()) < rounds/3 || int(s.added.Load()) < rounds/3 {
		t.Error("too few for a storm")
	}
	for _, kind := range s.kinds {
		for _, f := range slices.Concat(kind.add, kind.del) {
			if s.kills.kills[f.point] == 0 && rounds == stormRounds {
				t.Errorf("nothing was killed at %s", f.point)
			}
		}
	}
}

// storm is what the workers share.
type storm struct {
	t          *testing.T
	h          *lab.Host
	bin        string
	kinds      []stormKind
	containers []*stormContainer
	before     []lab.Link // on the host
	seed       uint64

	kills tally
	died  atomic.Int64 // rounds in which a plugin did
	added atomic.Int64 // ADDs that succeeded

	mu     sync.Mutex
	holder map[netip.Addr]string // a container ID
}

// stormContainer belongs to one worker.
type stormContainer struct {
	*lab.Namespace
	// owed is what has to be done before the container can be used again.
	owed func() error
}

func (c *stormContainer) settle() error {
	if c.owed == nil {
		return nil
	}
	owed := c.owed
	c.owed = nil
	return owed()
}

// anyTime is no point: the runtime kills the plugin whatever it does, so that
// steps between which the source has no point are met, too.
var anyTime = fault{point: "any time"}

// longest is more than a call takes.
const longest = 40 * time.Millisecond

// stormKind is a configuration, and the points that its calls go past.
type stormKind struct {
	conf     string
	add, del []fault
}

func newStorm(t *testing.T) *storm {
	t.Helper()
	seed := rand.Uint64()
	if given := os.Getenv("CRASH_SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	h := oneHost(t)
	s := &storm{t: t, h: h, bin: faulty(t), seed: seed, before: hostLinks(t, h), holder: make(map[netip.Addr]string)}
	n, rt := container(t, h, "first")
	first := &attachment{t: t, cni: h.CNI(ours), station: station{Namespace: n}, rt: rt}
	for _, more := range []keys{{}, {"hostAccess": true}} {
		more["ipam"] = json.RawMessage(stormPool)
		first.conf = lan(t, h, more)
		first.add() // makes the ledger
		first.del()
		add, del := faults(t, h, "ADD", first.conf, rt, false), faults(t, h, "DEL", first.conf, rt, false)
		s.kinds = append(s.kinds, stormKind{first.conf, append(add, anyTime), append(del, anyTime)})
	}
	for i := range stormContainers {
		n, _ := container(t, h, fmt.Sprintf("c%d", i))
		s.containers = append(s.containers, &stormContainer{Namespace: n})
	}
	return s
}

// round begins the life of an attachment, and ends it, unless that is put off:
// one or two ADDs and up to two DELs of which any may die, and a DEL that does
// not.
func (s *storm) round(c *stormContainer, round int) error {
	if err := c.settle(); err != nil {
		return fmt.Errorf("put off: %w", err)
	}
	choose := rand.New(rand.NewPCG(s.seed, uint64(round)))
	a := &stormAttachment{storm: s, at: c.Namespace, choose: choose, kind: s.kinds[0]}
	if choose.IntN(4) == 0 {
		a.kind = s.kinds[1]
	}
	a.rt = &libcni.RuntimeConf{ContainerID: fmt.Sprintf("r%d", round), NetNS: c.Path, IfName: "eth0"}
	if choose.IntN(2) == 0 {
		// Else the MAC follows from the address, and the kernel, which has each
		// MAC only once on a parent, would see to it that the address is, too.
		a.rt.Args = [][2]string{{"MAC", fmt.Sprintf("02:00:00:00:%02x:%02x", round>>8, round&0xff)}}
	}
	if err := a.attach(); err != nil {
		return err
	}
	switch choose.IntN(3) {
	case 0: // goes on to live
		c.owed = func() error { return errors.Join(a.detachBadly(), a.detach()) }
		return nil
	case 1: // lies about
		c.owed = a.detach
		return a.detachBadly()
	}
	return errors.Join(a.detachBadly(), a.detach())
}

// stormAttachment is what one round is about.
type stormAttachment struct {
	*storm
	at     *lab.Namespace
	rt     *libcni.RuntimeConf
	kind   stormKind
	choose *rand.Rand
	died   bool // one of its calls
}

// call dies at one of points, or at none.
func (a *stormAttachment) call(verb string, points []fault) ([]netip.Addr, error) {
	var f fault
	if len(points) > 0 && a.choose.IntN(3) > 0 {
		f = points[a.choose.IntN(len(points))]
	}
	ctx, cancel := a.t.Context(), func() {}
	if f == anyTime {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(a.choose.Int64N(int64(longest))))
	}
	defer cancel()
	addrs, err := callWith(ctx, a.h, a.bin, f.env(), verb, a.kind.conf, a.rt)
	switch {
	case f.at != "" && killed(err), ctx.Err() != nil && silenced(err):
		a.kills.add(f)
		if !a.died {
			a.storm.died.Add(1)
		}
		a.died = true
		return nil, a.recorded()
	case err != nil:
		return nil, fmt.Errorf("%s (fault %q): %w", verb, f, err)
	}
	return addrs, nil
}

func (a *stormAttachment) attach() error {
	var had []netip.Addr
	for range 1 + a.choose.IntN(2) {
		got, err := a.call("ADD", a.kind.add)
		switch {
		case err != nil:
			return err
		case got == nil:
			continue
		case had != nil && !slices.Equal(had, got):
			return fmt.Errorf("the repeated ADD returned %v, the first %v", got, had)
		}
		had = got
		a.added.Add(1)
		if err := a.claim(got); err != nil {
			return err
		}
	}
	return nil
}

func (a *stormAttachment) detachBadly() error {
	a.leave()
	for range a.choose.IntN(3) {
		if _, err := a.call("DEL", a.kind.del); err != nil {
			return err
		}
	}
	return nil
}

func (a *stormAttachment) detach() error {
	if _, err := a.call("DEL", nil); err != nil {
		return err
	}
	_, links, err := inside(a.at)
	if err == nil && links != 1 {
		err = errors.New("a link is left after DEL")
	}
	return err
}

// claim: an ADD has returned addresses. Nobody else is attached with them, nor
// has any other container a link that still carries them: one whose ADD died,
// or whose DEL has begun, had to keep them for as long as its link was there.
func (a *stormAttachment) claim(addrs []netip.Addr) error {
	a.mu.Lock()
	for _, addr := range addrs {
		if other := a.holder[addr]; other != "" && other != a.rt.ContainerID {
			a.mu.Unlock()
			return fmt.Errorf("ADD returned %s, and %s has it", addr, other)
		}
		a.holder[addr] = a.rt.ContainerID
	}
	a.mu.Unlock()
	for _, c := range a.containers {
		carried, _, err := inside(c.Namespace)
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			if slices.Contains(carried, addr) != (c.Namespace == a.at) {
				return fmt.Errorf("ADD returned %s; in %s there is %v", addr, c.ID, carried)
			}
		}
	}
	return nil
}

// recorded: what the link of an attachment whose call died carries, the ledger
// still has as its own. Else it would be given to others.
func (a *stormAttachment) recorded() error {
	carried, _, err := inside(a.at)
	if err != nil || len(carried) == 0 {
		return err
	}
	rec, _, _, err := client.New(a.h.DataDir, a.h.RunDir).Attachment(a.t.Context(), ipam.Attachment{Network: "lan", ContainerID: a.rt.ContainerID, IfName: "eth0"})
	for _, addr := range carried {
		if !slices.Contains(rec.Addresses, addr) {
			err = errors.Join(err, fmt.Errorf("a link has %s, and the ledger knows of %v alone", addr, rec.Addresses))
		}
	}
	return err
}

// leave: from the moment that a DEL begins, others may get what it releases.
func (a *stormAttachment) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr, holder := range a.holder {
		if holder == a.rt.ContainerID {
			delete(a.holder, addr)
		}
	}
}

// inside are the addresses in a container that others can reach, and the number
// of its links, read without a process.
func inside(n *lab.Namespace) (addrs []netip.Addr, links int, err error) {
	err = n.Do(func() error {
		list, err := net.Interfaces()
		if err != nil {
			return err
		}
		links = len(list)
		prefixes, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			addr, _ := netip.AddrFromSlice(p.(*net.IPNet).IP)
			if addr = addr.Unmap(); addr.IsGlobalUnicast() {
				addrs = append(addrs, addr)
			}
		}
		return nil
	})
	return addrs, links, err
}
