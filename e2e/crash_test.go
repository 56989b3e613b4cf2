package e2e_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// crashCase is a configuration whose ADD or DEL dies at every step.
type crashCase struct {
	name  string
	verbs []string
	keys  keys
	// chain, unless nil, are several plugins in the place of keys.
	chain []keys
	// host makes what has to be on the host.
	host func(*testing.T, *lab.Host)
	// prepare comes right before the call that dies, mend after it.
	prepare, mend func(*crash)
	// fails: the call fails where it does not die.
	fails bool
	// alone: the parent takes no second child.
	alone bool
	// foreign: host-local has no GC, and the ledger knows of no attachment.
	foreign bool
}

// A plugin that is killed leaves what the next call mends: the same ADD again,
// a DEL, or a GC where the runtime has forgotten the container.
func TestCrashEveryStep(t *testing.T) {
	t.Parallel()
	both, onlyADD, onlyDEL := []string{"ADD", "DEL"}, []string{"ADD"}, []string{"DEL"}
	tests := []crashCase{
		{name: "dual-stack", verbs: both, keys: keys{"conflictDetection": "fast"}},
		{name: "hostAccess", verbs: both, keys: keys{"mode": "bridge", "hostAccess": true}},
		{name: "passthru", verbs: both, keys: keys{"mode": "passthru", "mac": "02:00:00:00:00:07"}, alone: true},
		{name: "hostgw", verbs: both, keys: keys{"type": "hostgw", "ipMasq": true, "peers": routedPeers, "ipam": routedRanges}},
		{name: "hostgw on a bridge", verbs: both, keys: keys{"type": "hostgw", "bridge": "ul0", "peers": routedPeers, "ipam": routedRanges}},
		{name: "segment", verbs: both, chain: []keys{segment(5001, nil), {"type": "macvlan", "mode": "bridge", "ipam": lanRanges}}},
		{name: "overlay", verbs: both, host: func(t *testing.T, h *lab.Host) { uplink(t, h, "pods", 1, 1430) },
			chain: []keys{{"type": "hostgw", "ipam": routedRanges}, overlay(nil)}},
		{name: "host-local", verbs: both, foreign: true, keys: keys{"ipam": json.RawMessage(`{"type": "host-local", "ranges": [
			[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.19"}],
			[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10", "rangeEnd": "2001:db8::19"}]]}`)}},
		{name: "undone", verbs: onlyADD, keys: keys{"hostAccess": true}, fails: true, prepare: (*crash).spoilRoutes, mend: (*crash).mendRoutes},
		{name: "repeated", verbs: onlyADD, prepare: func(c *crash) { c.add() }},
		{name: "no ledger yet", verbs: onlyADD, prepare: (*crash).forgetLedger},
		{name: "ledger unreadable", verbs: onlyDEL, prepare: (*crash).damageLedger, mend: (*crash).restoreLedger},
		{name: "release spooled", verbs: onlyADD, prepare: (*crash).spoolRelease},
	}
	var kills tally
	var rows, ran atomic.Int32
	t.Run("at", func(t *testing.T) {
		for _, test := range tests {
			for _, verb := range test.verbs {
				rows.Add(1)
				t.Run(verb+" "+test.name, func(t *testing.T) {
					t.Parallel()
					ran.Add(1)
					everyStep(t, test, verb, &kills)
				})
			}
		}
	})
	t.Logf("killed at %s", &kills)
	if ran.Load() == rows.Load() { // -run may have chosen some
		kills.wantEveryPoint(t)
	}
}

// lanRanges are a segment's, whatever is outside.
var lanRanges = json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.7.0.0/28"}], [{"subnet": "fd07::/112"}]]}`)

// routedRanges are none of the segment's.
var routedRanges = json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.5.1.0/28"}], [{"subnet": "fd05::/112"}]]}`)

// routedPeers are on the segment, whether or not they are there.
var routedPeers = []keys{{"prefix": "10.5.2.0/24", "via": "192.0.2.200"}, {"prefix": "fd05:0:0:2::/64", "via": "2001:db8::200"}}

func everyStep(t *testing.T, test crashCase, verb string, kills *tally) {
	c := newCrash(t, test)
	c.begin(verb)
	points := faults(t, c.h, verb, c.conf, c.rt, c.fails)
	if c.chain != nil { // each plugin counts for itself
		points = slices.DeleteFunc(points, func(f fault) bool { return f.at != f.point })
	}
	c.end()
	c.del()
	for _, f := range points {
		for _, recovery := range recoveries {
			if recovery.needsGC && c.foreign || recovery.needsRoom && c.alone {
				continue
			}
			passed := t.Run(f.String()+"/"+recovery.name, func(t *testing.T) {
				c.t, c.neighbour.t = t, t
				c.begin(verb)
				if _, err := callWith(t.Context(), c.h, faulty(t), f.env(), verb, c.conf, c.rt); !killed(err) {
					t.Fatalf("%s was not killed: %v", verb, err)
				}
				kills.add(f)
				c.end()
				wantSoundLedger(t, c.h)
				c.wantRecorded()
				recovery.run(c)
				if held := c.holds(); len(held) > 0 {
					t.Errorf("still holds %v", held)
				}
				wantNothing(t, c.h, c.before, c.Namespace, c.neighbour.Namespace)
				if c.keys["type"] == "hostgw" {
					wantNoStatic(t, c.h)
				}
			})
			if !passed {
				c = newCrash(t, test) // what is left on this one would fail the rest
			}
		}
	}
}

// recoveries are what a runtime may do after a call that died.
var recoveries = []struct {
	name               string
	needsGC, needsRoom bool
	run                func(*crash)
}{
	{name: "ADD again", run: (*crash).addAgain},
	{name: "DEL", run: func(c *crash) { c.del() }},
	{name: "DEL when others came", run: (*crash).delLate, needsRoom: true},
	{name: "GC", run: (*crash).collect, needsGC: true},
}

// crash is a host with two containers. The calls of the first one die.
type crash struct {
	*attachment
	crashCase
	h         *lab.Host
	neighbour *attachment
	before    []lab.Link // on the host
	ledger    []byte     // while it is damaged
}

func newCrash(t *testing.T, test crashCase) *crash {
	t.Helper()
	c := &crash{crashCase: test, h: oneHost(t)}
	if test.host != nil {
		test.host(t, c.h)
	}
	c.before = hostLinks(t, c.h)
	conf := lan(t, c.h, test.keys)
	if test.chain != nil {
		conf = chain(t, "lan", test.chain...)
	}
	detached := func(name string) *attachment {
		a := &attachment{t: t, cni: c.h.CNI(ours, reference), conf: conf}
		a.Namespace, a.rt = container(t, c.h, name)
		return a
	}
	c.attachment, c.neighbour = detached("c1"), detached("c2")
	c.add() // makes the ledger
	c.del()
	return c
}

// begin comes to where the verb is called, and end is after it.
func (c *crash) begin(verb string) {
	c.t.Helper()
	if verb == "DEL" {
		c.add()
	}
	if c.prepare != nil {
		c.prepare(c)
	}
}

func (c *crash) end() {
	if c.mend != nil {
		c.mend(c)
	}
}

// spoilRoutes has ADD fail when the link has its addresses already.
func (c *crash) spoilRoutes() {
	c.conf = strings.Replace(c.conf, `"ranges":`, `"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}], "ranges":`, 1)
}

func (c *crash) mendRoutes() { c.conf = c.neighbour.conf }

func (c *crash) forgetLedger() {
	for _, dir := range []string{c.h.DataDir, c.h.RunDir} {
		wantOK(c.t, "forget the ledger", os.RemoveAll(dir))
	}
}

func (c *crash) db() string { return filepath.Join(c.h.DataDir, "ledger.db") }

func (c *crash) damageLedger() {
	c.t.Helper()
	var err error
	if c.ledger, err = os.ReadFile(c.db()); err != nil {
		c.t.Fatal(err)
	}
	damage(c.t, c.h)
}

func (c *crash) restoreLedger() {
	wantOK(c.t, "restore the ledger", os.WriteFile(c.db(), c.ledger, 0o600))
}

// spoolRelease has a DEL that could not reach the ledger.
func (c *crash) spoolRelease() {
	c.add()
	c.damageLedger()
	c.del()
	c.restoreLedger()
}

func (c *crash) addAgain() {
	c.t.Helper()
	if c.foreign && len(c.holds()) > 0 {
		c.del() // host-local refuses a container that it knows
	}
	c.add()
	wantOK(c.t, "CHECK", c.cni.Check(c.t.Context(), c.conf, c.rt))
	c.wantRecorded()
	if c.keys["hostAccess"] == true {
		reaches(c.t, hostStation(c.t, c.h), c.station)
	}
	if !c.alone {
		c.welcome()
		c.neighbour.del()
	}
	c.del()
}

// delLate: what is left until then is in nobody's way.
func (c *crash) delLate() {
	c.t.Helper()
	c.welcome()
	c.del()
	c.neighbour.del()
}

// welcome: a neighbour comes, who shares no address with the victim.
func (c *crash) welcome() {
	c.t.Helper()
	c.neighbour.add()
	held := c.holds()
	for _, addr := range texts(c.neighbour.addrs) {
		if slices.Contains(held, addr) {
			c.t.Errorf("%s is the neighbour's, too", addr)
		}
	}
	c.wantRecorded()
}

// collect is a GC to which no attachment is valid.
func (c *crash) collect() {
	c.t.Helper()
	_, made, err := c.Link(c.t.Context(), "eth0")
	spooled, serr := filepath.Glob(filepath.Join(c.h.DataDir, "released.d", "*.json"))
	if err = errors.Join(err, serr); err != nil {
		c.t.Fatal(err)
	}
	recorded := len(readBooks(c.t, c.h).Attachments) > 0 && len(spooled) == 0
	plugins := c.chain
	if plugins == nil {
		plugins = []keys{c.keys}
	}
	for _, plugin := range plugins {
		conf := keys{"cni.dev/valid-attachments": []string{}}
		maps.Copy(conf, plugin)
		kind, _ := plugin["type"].(string) // "" is macvlan
		if kind == "vxlan" {
			conf = merged(keys{"master": "", "ipam": nil}, conf)
		}
		_, err = call{verb: "GC", plugin: kind}.run(c.t, c.h, placed(c.t, c.h, conf))
		wantOK(c.t, "GC", err)
	}
	if made && !recorded && !c.alone {
		// The link is made while the ledger writes. One that is on no record yet
		// has no address, and goes with its namespace or with a DEL. In passthru
		// it would keep all others from the parent: there it has to come later.
		c.del()
	}
}

// holds are the victim's addresses as IPAM knows them, ours or host-local.
func (c *crash) holds() []string {
	c.t.Helper()
	held := readBooks(c.t, c.h).held()[c.ID]
	files, err := filepath.Glob(filepath.Join(c.h.DataDir, "lan", "*"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(text), c.ID) {
			held = append(held, filepath.Base(file))
		}
	}
	return held
}

// wantRecorded: what the victim's link has, IPAM knows to be in use. Else it
// would be given to others while the link still answers for it.
func (c *crash) wantRecorded() {
	c.t.Helper()
	links, err := c.Links(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	held := c.holds()
	for _, link := range links {
		for _, p := range link.Addrs {
			if p.Addr().IsGlobalUnicast() && !slices.Contains(held, p.Addr().String()) {
				c.t.Errorf("%s has %s, and IPAM knows of %v alone", link.Name, p, held)
			}
		}
	}
}
