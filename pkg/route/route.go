// Package route keeps the routes to peers in the kernel as they are wanted.
//
// Ours are the routes of one table that carry our route protocol number, which
// is all there is to know them by: those that an earlier process left are ours
// too, and those of anybody else are never touched, not even one to the same
// prefix, which is in the way then and reported. A route whose next hop or
// interface changes is made before it is broken, as far as the kernel can tell
// the two apart.
//
// The package does not decide who is reached how, and leaves out multipath
// routes, rules and VRFs.
package route

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Route is a route to a prefix: through an interface, or to nowhere.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop; the zero value means that Dst is on the link.
	Via netip.Addr
	// Dev is the name of the interface.
	Dev string
	// Onlink: Via is on the link, whatever the addresses there say.
	Onlink bool
	// Unreachable answers what no longer route takes, instead of passing it on.
	// Such a route has nothing but Dst and Metric.
	Unreachable bool
	// Src is the preferred source, an address of this host; the zero value leaves
	// it to the kernel.
	Src netip.Addr
	// MTU in octets; 0 means that of the interface.
	MTU int
	// Metric: of several routes to Dst the lowest wins; 0 means the kernel's
	// default, which is 1024 for IPv6.
	Metric int

	// odd is what routes have that this package does not make.
	odd odd
}

type odd struct {
	kind, tos uint8
	many      bool // next hops
}

// Key is what the kernel has one route for, of ours and others.
type Key struct {
	Dst    netip.Prefix
	Metric int
}

// Key implements reconcile.Object.
func (r Route) Key() Key { return Key{r.Dst, r.Metric} }

// defaultMetric of IPv6, IP6_RT_PRIO_USER.
const defaultMetric = 1024

// Canonical is the route as the kernel shows it, or an error that says why there
// is no such route.
func (r Route) Canonical() (Route, error) {
	r.Via, r.Src = r.Via.Unmap(), r.Src.Unmap()
	switch is4 := r.Dst.Addr().Is4(); {
	case !r.Dst.IsValid() || r.Dst.Addr().Is4In6():
		return r, errors.New("the prefix is malformed")
	case r.Dst != r.Dst.Masked():
		return r, fmt.Errorf("the prefix is that of %s", r.Dst.Masked())
	case r.MTU < 0 || r.Metric < 0:
		return r, errors.New("the MTU or the metric is negative")
	case r.Unreachable && r != (Route{Dst: r.Dst, Unreachable: true, Metric: r.Metric}):
		return r, errors.New("a route to nowhere has no next hop")
	case !r.Unreachable && r.Dev == "":
		return r, errors.New("the interface is missing")
	case r.Via.IsValid() && r.Via.Is4() != is4:
		return r, errors.New("the gateway is of another address family")
	case r.Src.IsValid() && r.Src.Is4() != is4:
		return r, errors.New("the source is of another address family")
	case r.Via.Zone() != "" || r.Src.Zone() != "":
		return r, errors.New("the zone belongs into the interface")
	case r.Onlink && !r.Via.IsValid():
		return r, errors.New("only a gateway can be on the link")
	case !is4 && r.Metric == defaultMetric:
		r.Metric = 0
	}
	return r, nil
}

// String spells the route as iproute2 does.
func (r Route) String() string {
	dst := "malformed prefix"
	if r.Dst.IsValid() {
		dst = r.Dst.String()
	}
	s := dst
	if r.Unreachable {
		s = "unreachable " + dst
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Dev != "" {
		s += " dev " + r.Dev
	}
	if r.Src.IsValid() {
		s += " src " + r.Src.String()
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	if r.Onlink {
		s += " onlink"
	}
	if r.odd != (odd{}) {
		s += fmt.Sprintf(" type %d tos %d multipath %t", r.odd.kind, r.odd.tos, r.odd.many)
	}
	return s
}

// Protocol is our route protocol number.
const Protocol = 141

// ErrForeign is returned for a route that there is already, of somebody else.
var ErrForeign = errors.New("a route of somebody else to the same prefix is in the way")

// Config says which routes are kept, and where.
type Config struct {
	// Netns is the namespace; nil means that of the calling thread. It may be
	// closed after New.
	Netns *netns.NS
	// Protocol marks our routes; default Protocol. Two reconcilers of one table
	// share it only if Owns tells their routes apart.
	Protocol uint8
	// Table; default 254, the main table.
	Table int
	// Owns narrows down which routes of Protocol are ours; nil means all. What is
	// wanted has to be ours. Optional.
	Owns func(Route) bool
	// Kernel is another one than the real one, such as a Fake, to which Netns,
	// Protocol, Table and Owns do not apply. Optional.
	Kernel reconcile.Kernel[Route]

	// Options as in reconcile.
	Retry, MaxRetry, Resync time.Duration
	Changed                 func(Status)
}

type (
	// Want is a route, and the peer that it leads to.
	Want = reconcile.Want[Route]
	// Status is what has become of a Want.
	Status = reconcile.Status[Route]
	// Kernel is where the routes are.
	Kernel = reconcile.Kernel[Route]
)

// Reconciler keeps routes.
type Reconciler struct {
	*reconcile.Reconciler[Key, Route]
}

// New opens the kernel's table. It writes nothing before the first Apply.
func New(cfg Config) (*Reconciler, error) {
	kernel := cfg.Kernel
	if kernel == nil {
		t, err := openTable(cfg)
		if err != nil {
			return nil, err
		}
		kernel = t
	}
	return &Reconciler{reconcile.New[Key](kernel, reconcile.Options[Route]{
		Retry: cfg.Retry, MaxRetry: cfg.MaxRetry, Resync: cfg.Resync, Changed: cfg.Changed,
	})}, nil
}
