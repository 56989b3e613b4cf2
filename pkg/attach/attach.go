// Package attach is the way of an attachment that all main plugins share:
// find the parent, lock the container's namespace, get addresses, make the
// link, give it addresses and routes, ask the wire and tell it, and on any
// failure take all of it back. DEL, CHECK, GC and STATUS likewise. A main
// plugin brings a Kind: how its link is made and told from others.
package attach

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
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
	// MACPrefix begins the MACs that are derived from network, node and address.
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
	ParentMAC bool
	// HostAccess: the kernel lets a sibling on the host reach this link. If
	// not, NoHostAccess says why.
	HostAccess   bool
	NoHostAccess string
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
}

// newPlan checks all that can be checked without looking at the kernel.
func newPlan(req *cni.Request, conf *Config, kind Kind) (*plan, error) {
	p := &plan{Config: conf, kind: kind, req: req, att: attachment(req, conf)}
	var err error
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
	if p.mac, err = fixedMAC(req, conf); err != nil {
		return nil, err
	}
	if _, err := ipam.ParseMACPrefix(p.macPrefix()); err != nil {
		return nil, err
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
	case conf.HostAccess && !kind.HostAccess:
		return nil, invalid("hostAccess: %s", kind.NoHostAccess)
	case conf.HostAccess && p.ipamType == "":
		return nil, invalid("hostAccess: needs ipam: the host reaches the container by its address")
	}
	switch conf.ConflictDetection {
	case "":
		conf.ConflictDetection = DetectFast
	case DetectFast, DetectThorough, DetectOff:
	default:
		return nil, invalid("conflictDetection: %q is none of fast, thorough, off", conf.ConflictDetection)
	}
	p.client = newClient(conf)
	if p.ipamType == OwnIPAM || p.uses("").Shared() {
		if err := p.client.CheckPlace(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func invalid(format string, args ...any) error {
	return cni.Errorf(types.ErrInvalidNetworkConfig, format, args...)
}

func attachment(req *cni.Request, conf *Config) ipam.Attachment {
	return ipam.Attachment{Network: conf.Name, ContainerID: req.ContainerID, IfName: req.IfName}
}

// newClient finds the ledger's place without demanding more of the
// configuration: DEL has to work with one that has become invalid.
func newClient(conf *Config) *client.Client {
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

func fixedMAC(req *cni.Request, conf *Config) (net.HardwareAddr, error) {
	switch {
	case conf.RuntimeConfig.MAC != "":
		return ipam.ParseMAC("runtimeConfig.mac", conf.RuntimeConfig.MAC)
	case req.Args.MAC != "":
		return ipam.ParseMAC("CNI_ARGS MAC", req.Args.MAC)
	case conf.MAC != "":
		return ipam.ParseMAC("mac", conf.MAC)
	}
	return nil, nil
}

func (p *plan) macPrefix() string { return first(p.MACPrefix, ipam.DefaultMACPrefix) }

// uses is what the attachment shares with others on the host.
func (p *plan) uses(parent string) ipam.Uses {
	if p.VLAN == 0 && !p.HostAccess {
		return ipam.Uses{}
	}
	return ipam.Uses{Parent: parent, VLAN: p.VLAN, HostAccess: p.HostAccess}
}

// touchesLedger reports whether the ledger has a record of this attachment.
func touchesLedger(conf *Config, ipamType string) bool {
	return ipamType == OwnIPAM || conf.VLAN != 0 || conf.HostAccess
}

// macWithoutAddress is the MAC of an interface whose address this suite does
// not choose: the same for each ADD of the same attachment.
func (p *plan) macWithoutAddress() (net.HardwareAddr, error) {
	sum := sha256.Sum256([]byte(p.att.ContainerID + "/" + p.att.IfName))
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

// findParent resolves Master on handle h, whose namespace it lies in.
func (p *plan) findParent(h *link.Handle) (link.Link, error) {
	name := p.Master
	if name == "" {
		prev, err := p.Previous()
		if err != nil {
			return link.Link{}, err
		}
		name = hostInterface(prev)
	}
	if name == "" {
		var err error
		if name, err = h.DefaultRouteLink(); err != nil {
			return link.Link{}, cni.Errorf(cni.CodeParent, "master: is missing, and %w", err)
		}
	}
	parent, err := h.Parent(name)
	if err != nil {
		return link.Link{}, cni.Errorf(cni.CodeParent, "master: %w", err)
	}
	if p.MTU > parent.MTU {
		return link.Link{}, invalid("mtu: %d is more than the %d of master %q", p.MTU, parent.MTU, parent.Name)
	}
	if bytes.Equal(p.mac, parent.MAC) && p.mac != nil && !p.kind.ParentMAC {
		return link.Link{}, invalid("mac: %s is that of master %q itself", p.mac, parent.Name)
	}
	return parent, nil
}

// hostInterface is the first interface of a result that is on the host.
func hostInterface(res *current.Result) string {
	if res != nil {
		for _, i := range res.Interfaces {
			if i.Sandbox == "" {
				return i.Name
			}
		}
	}
	return ""
}
