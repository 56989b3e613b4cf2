// Package attach is the way of an attachment that all main plugins share:
// find the parent, lock the container's namespace, get addresses, make the
// link, give it addresses and routes, ask the wire and tell it, and on any
// failure take all of it back. DEL, CHECK, GC and STATUS likewise. A main
// plugin brings a Kind: how its link is made and told from others.
package attach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/digest"
	"github.com/underlay-cni/underlay/pkg/link"
)

// OwnIPAM is the ipam.type that runs in this process.
const OwnIPAM = "underlay"

// Conflict detection of Config.ConflictDetection.
const (
	DetectFast     = "fast"
	DetectThorough = "thorough"
	DetectOff      = "off"
)

// Config are the keys that all main plugins have.
type Config struct {
	cni.NetConf
	// Master is the parent interface; "" means a host interface of prevResult,
	// else the interface of the default route.
	Master string `json:"master"`
	// MTU in bytes; 0 takes the parent's.
	MTU int `json:"mtu"`
	// MAC of the interface; see also MACPrefix.
	MAC string `json:"mac"`
	// MACPrefix begins the MACs that are derived from network and address, and from
	// node or cluster pool.
	MACPrefix string `json:"macPrefix"`
	// LinkInContainer: the parent is in the container's namespace.
	LinkInContainer bool `json:"linkInContainer"`
	// VLAN id of a sub-interface of Master to use as the parent; 0 means none.
	VLAN int `json:"vlan"`
	// HostAccess lets the host reach the container.
	HostAccess bool `json:"hostAccess"`
	// ConflictDetection is one of the Detect constants; "" means fast.
	ConflictDetection string `json:"conflictDetection"`
}

// Kind is what one main plugin brings.
type Kind struct {
	// Name of the kind of link, as the kernel has it.
	Name string
	// Create makes the link, down, and returns its index in its namespace.
	Create func(*link.Handle, link.Target) (int, error)
	// Differs says how a link differs from what Create makes; "" not at all.
	Differs func(link.Link) string
	// ParentMAC: the link carries its parent's MAC unless one is configured.
	// If none can be, NoMAC says why.
	ParentMAC bool
	NoMAC     string
	// TakesParent: the link changes its parent and tolerates no sibling, so it
	// is made only when the ledger has it on record.
	TakesParent bool
	// Port is the setting that all links of this kind on one parent have in
	// common; "" where each has its own. Others then finds out whether there are
	// any, in whatever namespace, and describes one that has another; "" if all
	// have this one.
	Port   string
	Others func(h *link.Handle, parent link.Link) (found bool, rival string, err error)
	// Deaf: answers to what the link asks the wire come to its parent only.
	Deaf bool
	// Layer3: there is neither ARP nor broadcast on the link, and routes need
	// no gateway.
	Layer3 bool
	// Chained: without ipam, the link gets the addresses of prevResult.
	Chained bool
	// NoHostAccess says why a sibling on the host, which Sibling makes, cannot
	// reach this link; "" if it can.
	NoHostAccess string
	Sibling      func(*link.Handle, link.Target) (int, error)
	// Pair is set if the link is one end of a pair, the other of which stays on
	// the host.
	Pair *Pair
	// Network, unless empty, is on record as what the attachment reaches the
	// peers of, and Masquerade with it; see ipam.Uses.
	Network    string
	Masquerade bool
}

// noARP: on the link there is nobody to be asked for addresses.
func (k *Kind) noARP() bool { return k.Layer3 || k.Pair != nil }

// sharesMAC: frames to any child of the parent carry the parent's MAC.
func (k *Kind) sharesMAC() bool { return k.ParentMAC && !k.TakesParent }

// Load reads the configuration of a main plugin from stdin and checks what is
// the plugin's own in it. Besides an error it returns what could be read: DEL
// and GC take back what was made when the configuration was still valid.
type Load func(stdin []byte) (*Config, Kind, error)

// Plugin is a main plugin whose configuration load reads.
func Plugin(name string, load Load) cni.Plugin {
	valid := func(act func(context.Context, *cni.Request, *Config, Kind) error) func(context.Context, *cni.Request) error {
		return func(ctx context.Context, req *cni.Request) error {
			conf, kind, err := load(req.Stdin)
			if err != nil {
				return err
			}
			return act(ctx, req, conf, kind)
		}
	}
	anyway := func(act func(context.Context, *cni.Request, *Config, Kind) error) func(context.Context, *cni.Request) error {
		return func(ctx context.Context, req *cni.Request) error {
			conf, kind, _ := load(req.Stdin) // that it is JSON with a name has been checked before
			return act(ctx, req, conf, kind)
		}
	}
	add := func(ctx context.Context, req *cni.Request) (*current.Result, error) {
		conf, kind, err := load(req.Stdin)
		if err != nil {
			return nil, err
		}
		return Add(ctx, req, conf, kind)
	}
	return cni.Plugin{Name: name, Add: add, Del: anyway(Del), Check: valid(Check), GC: anyway(GC), Status: valid(Status)}
}

// plan is a call's configuration, checked.
type plan struct {
	*Config
	kind Kind
	req  *cni.Request
	att  ipam.Attachment

	// ipamType is "" for an attachment without addresses.
	ipamType string
	ipam     ipam.Config // when ipamType is OwnIPAM
	ips      []cni.RequestedIP
	mac      net.HardwareAddr // fixed by the user; nil otherwise
	client   *client.Client
	// segment is the VNI of the VXLAN segment that the parent is the leg of; 0 for
	// none. Quiet: there the registry knows who has an address, and nobody is asked
	// or told, if unasked: the configuration wants no more than it has to.
	segment        int
	quiet, unasked bool
}

// newPlan checks all that can be checked without looking at the kernel.
func newPlan(req *cni.Request, conf *Config, kind Kind) (*plan, error) {
	p := &plan{Config: conf, kind: kind, req: req, att: attachment(req, conf)}
	var err error
	if err := conf.CheckIPAM(); err != nil {
		return nil, err
	}
	if p.ipamType, err = conf.IPAMType(); err != nil {
		return nil, err
	}
	if p.ipamType == OwnIPAM {
		if p.ipam, err = ipam.Load(conf.IPAM, conf.Name, conf.RuntimeConfig.IPRanges); err != nil {
			return nil, err
		}
	}
	if p.ips, err = req.RequestedIPs(&conf.NetConf); err != nil {
		return nil, err
	}
	if p.mac, err = fixedMAC(req, conf, kind); err != nil {
		return nil, err
	}
	if _, err := ipam.ParseMACPrefix(p.macPrefix()); err != nil {
		return nil, err
	}
	p.unasked = p.ipamType == OwnIPAM && (conf.ConflictDetection == "" || conf.ConflictDetection == DetectOff)
	if kind.noARP() && conf.ConflictDetection == "" {
		conf.ConflictDetection = DetectOff
	}
	switch {
	case strings.ContainsRune(conf.Master, 0):
		return nil, invalid("master: %q is no interface name", conf.Master)
	case len(alias(p.att)) > maxAlias:
		return nil, invalid("name: %q is too long: with the container's ID it has to fit %d octets", conf.Name, maxAlias-len("underlay::"))
	case conf.MTU < 0:
		return nil, invalid("mtu: %d is negative; 0 takes the parent's", conf.MTU)
	case conf.MTU > 0 && conf.MTU < minMTU:
		return nil, invalid("mtu: %d is less than the %d that IPv4 needs", conf.MTU, minMTU)
	case conf.VLAN < 0 || conf.VLAN > 4094:
		return nil, invalid("vlan: %d is not a VLAN id from 1 to 4094", conf.VLAN)
	case conf.VLAN != 0 && conf.LinkInContainer:
		return nil, invalid("vlan: %d: sub-interfaces are made on the host only, and linkInContainer is set", conf.VLAN)
	case conf.HostAccess && conf.LinkInContainer:
		return nil, invalid("hostAccess: the host shares no parent with the container when linkInContainer is set")
	case conf.HostAccess && kind.NoHostAccess != "":
		return nil, invalid("hostAccess: %s", kind.NoHostAccess)
	case conf.HostAccess && p.ipamType == "":
		return nil, invalid("hostAccess: needs ipam: the host reaches the container by its address")
	case conf.HostAccess && kind.sharesMAC() && p.ipamType != OwnIPAM:
		return nil, invalid("hostAccess: needs ipam of type %q: all links of one parent have its MAC, so only the ledger tells whose an address is", OwnIPAM)
	}
	if kind.Pair != nil {
		if err := checkPair(conf); err != nil {
			return nil, err
		}
	}
	switch conf.ConflictDetection {
	case "":
		conf.ConflictDetection = DetectFast
	case DetectFast, DetectThorough, DetectOff:
	default:
		return nil, invalid("conflictDetection: %q is none of fast, thorough, off", conf.ConflictDetection)
	}
	if kind.noARP() && conf.ConflictDetection != DetectOff {
		return nil, invalid("conflictDetection: %q asks by ARP who has an address, and nobody on this link could answer; the only value here is off", conf.ConflictDetection)
	}
	p.client = Client(conf)
	return p, p.client.CheckPlace()
}

// chained is the addresses that the link gets from who comes before it in the
// chain; nil for none, which not every link can do without.
func (p *plan) chained() (*current.Result, error) {
	if !p.kind.Chained || p.ipamType != "" {
		return nil, nil
	}
	prev, err := p.Previous()
	if err != nil {
		return nil, err
	}
	if prev == nil || len(prev.IPs) == 0 {
		if p.kind.Layer3 {
			return nil, invalid("ipam: is missing: the kernel finds a layer 3 link by its addresses")
		}
		return nil, nil
	}
	return &current.Result{IPs: prev.IPs, Routes: prev.Routes, DNS: prev.DNS}, nil
}

func invalid(format string, args ...any) error {
	return cni.Errorf(types.ErrInvalidNetworkConfig, format, args...)
}

func attachment(req *cni.Request, conf *Config) ipam.Attachment {
	return ipam.Attachment{Network: conf.Name, ContainerID: req.ContainerID, IfName: req.IfName}
}

// Client finds the ledger's place without demanding more of the
// configuration: DEL has to work with one that has become invalid.
func Client(conf *Config) *client.Client {
	dataDir, runDir := conf.DataDir, conf.RunDir
	if t, err := conf.IPAMType(); err == nil && t == OwnIPAM {
		d, r := ipam.Dirs(conf.IPAM)
		dataDir, runDir = first(dataDir, d), first(runDir, r)
	}
	return client.New(dataDir, runDir)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func fixedMAC(req *cni.Request, conf *Config, kind Kind) (net.HardwareAddr, error) {
	for _, from := range [][2]string{
		{"runtimeConfig.mac", conf.RuntimeConfig.MAC}, {"CNI_ARGS MAC", req.Args.MAC}, {"mac", conf.MAC},
	} {
		switch place, text := from[0], from[1]; {
		case text == "":
		case kind.NoMAC != "":
			return nil, invalid("%s: %s", place, kind.NoMAC)
		default:
			return ipam.ParseMAC(place, text)
		}
	}
	return nil, nil
}

func (p *plan) macPrefix() string { return first(p.MACPrefix, ipam.DefaultMACPrefix) }

// uses is what others on the host have to know of the attachment. A parent in
// the container has nothing to do with the host's of that name.
func (p *plan) uses(parent string) ipam.Uses {
	u := ipam.Uses{VLAN: p.VLAN, HostAccess: p.HostAccess, Network: p.kind.Network, Masquerade: p.kind.Masquerade}
	if !p.LinkInContainer {
		u.Port = p.kind.Port
		u.Segment.VNI = p.segment
	}
	if u.Any() {
		u.Parent = parent
	}
	return u
}

// touchesLedger reports whether the ledger may have a record of this
// attachment.
func touchesLedger(conf *Config, kind *Kind, ipamType string) bool {
	return ipamType == OwnIPAM || kind.Port != "" && !conf.LinkInContainer || kind.Network != "" || mayShare(conf) || link.LegOf(conf.master()) != 0
}

// untold reports whether the configuration says nothing of the parent: it may be
// the leg of a segment, which only the ADD was told.
func untold(conf *Config) bool { return conf.Master == "" && len(conf.PrevResult) == 0 }

// mayShare reports whether the attachment may share a link with others.
func mayShare(conf *Config) bool {
	_, _, vlan := link.SplitVLAN(conf.master())
	return vlan || conf.VLAN != 0 || conf.HostAccess
}

// macWithoutAddress is the MAC of an interface whose address this suite does
// not choose: the same for each ADD of the same attachment.
func (p *plan) macWithoutAddress() (net.HardwareAddr, error) {
	sum := digest.Sum256([]byte(p.att.ContainerID + "/" + p.att.IfName))
	s, err := ipam.DeriveMAC(p.macPrefix(), p.Name, "", netip.AddrFrom16([16]byte(sum[:16])))
	if err != nil {
		return nil, err
	}
	return net.ParseMAC(s)
}

// maxAlias is the longest alias of a link, IFALIASZ less its NUL.
const maxAlias = 255

// alias is what the link of an attachment is told by.
func alias(att ipam.Attachment) string {
	return fmt.Sprintf("underlay:%s:%s", att.Network, att.ContainerID)
}

// isOurs reports whether a link in the container's namespace is this
// attachment's: of our kind, and with our alias, or none (a link of the
// reference plugin, or of an ADD that died before it set one).
func isOurs(kind Kind, att ipam.Attachment) func(link.Link) bool {
	return func(l link.Link) bool {
		return l.Kind == kind.Name && l.Name == att.IfName && (l.Alias == "" || l.Alias == alias(att))
	}
}

// isMarked is isOurs for a namespace that may be another container's by now:
// only the alias counts.
func isMarked(kind Kind, att ipam.Attachment) func(link.Link) bool {
	return func(l link.Link) bool { return l.Alias == alias(att) && isOurs(kind, att)(l) }
}
