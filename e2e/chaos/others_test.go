package chaos_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"

	"github.com/google/go-cmp/cmp"
)

// others are what somebody else has put on a host: links, a route, neighbours,
// FDB entries, rules. They stay as they are, to the last byte.
type others struct {
	mu   sync.Mutex // held while they are put, too
	text string
}

// otherLinks are made with a bridge of their own, since what is on eth1 goes with
// it.
var otherLinks = []string{
	"link add fbr0 address 02:00:00:00:99:01 type bridge mcast_snooping 0",
	"link add fv0 address 02:00:00:00:99:02 type veth peer name fv1 address 02:00:00:00:99:03",
	"link set fv0 master fbr0 up alias theirs",
	"link set dev fv0 type bridge_slave learning off", // else the table changes by itself
	"link set fv1 up",
	"link set fbr0 up",
	"addr add 172.31.9.1/24 dev fbr0",
	"addr add fd31:9::1/64 dev fbr0 nodad",
	"neigh add 172.31.9.2 lladdr 02:00:00:00:99:04 dev fbr0 nud permanent",
	"neigh add fd31:9::2 lladdr 02:00:00:00:99:04 dev fbr0 nud permanent",
	"route add 203.0.113.0/24 via 172.31.9.2 dev fbr0 proto static",
	"route add 10.5.128.0/24 via 172.31.9.2 dev fbr0 proto 99",
	"route add fd31:a::/64 via fd31:9::2 dev fbr0 proto static",
	// The reference's bridge; a MAC that follows its ports fails its own CHECK.
	"link add " + refBr + " address 02:00:00:00:99:08 up type bridge",
	"link add fvx address 02:00:00:00:99:05 type vxlan id 99 dstport 4790 nolearning",
	"link set fvx up",
}

var otherFDB = [][]string{
	{"bridge", "fdb", "add", "02:00:00:00:99:06", "dev", "fv0", "master", "static"},
	{"bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "fvx", "dst", "192.0.2.250"},
	{"bridge", "fdb", "add", "02:00:00:00:99:07", "dev", "fvx", "dst", "192.0.2.251"},
}

// otherRules are of a table of their own.
const otherRules = `nft 'add table inet theirs { chain c { type filter hook forward priority 10; policy accept; ip saddr 203.0.113.9 drop comment "theirs"; }; set s { type ipv4_addr; elements = { 203.0.113.7 }; }; }'`

// shown is what tells whether they are there.
var shown = [][]string{
	{"ip", "-details", "link", "show", "fbr0"}, {"ip", "-details", "link", "show", "fv0"}, {"ip", "link", "show", "fv1"}, {"ip", "-details", "link", "show", "fvx"},
	{"ip", "addr", "show", "dev", "fbr0", "scope", "global"},
	{"ip", "route", "show", "dev", "fbr0"}, {"ip", "-6", "route", "show", "dev", "fbr0"},
	{"ip", "neigh", "show", "dev", "fbr0", "nud", "permanent"}, {"ip", "-6", "neigh", "show", "dev", "fbr0", "nud", "permanent"},
	{"bridge", "fdb", "show", "dev", "fv0"}, {"bridge", "fdb", "show", "dev", "fvx"},
	{"nft", "list", "table", "inet", "theirs"},
}

// numbered is what the kernel counts: numbers of links, timers of a bridge.
var numbered = regexp.MustCompile(`^\d+: |\b\w+_timer +[0-9.]+`)

// put makes them on a host that has none, as their owner does when it boots.
func (o *others) put(h *host) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.putLocked(h)
}

func (o *others) putLocked(h *host) error {
	ctx := context.Background()
	var errs []error
	for _, line := range otherLinks {
		_, err := h.Exec(ctx, append([]string{"ip"}, strings.Fields(line)...)...)
		errs = append(errs, err)
	}
	for _, argv := range otherFDB {
		_, err := h.Exec(ctx, argv...)
		errs = append(errs, err)
	}
	errs = append(errs, o.rules(h))
	text, err := o.show(h)
	o.text = text
	return errors.Join(append(errs, err)...)
}

// rules are made again by their owner, too, who has flushed all tables.
func (o *others) rules(h *host) error {
	_, err := h.Exec(context.Background(), "sh", "-c", otherRules)
	return err
}

// show is all of them as text, without the numbers that the kernel gives.
func (o *others) show(h *host) (string, error) {
	var b strings.Builder
	for _, argv := range shown {
		out, err := h.Exec(context.Background(), argv...)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			b.WriteString(numbered.ReplaceAllString(line, ""))
		}
	}
	return b.String(), nil
}

// look compares them with what was put.
func (o *others) look(h *host) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now, err := o.show(h)
	if err != nil {
		h.x.fail(h.Name, "what others have: %v", err)
		return
	}
	if diff := cmp.Diff(o.text, now); diff != "" {
		h.x.fail(h.Name, "what others have (-before +now):\n%s", diff)
		o.text = now // told once
	}
	h.x.count("looks at what is others'")
}
