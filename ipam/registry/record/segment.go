package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
)

// SegmentFolder has, by VNI, what each node with attachments in a VXLAN segment
// says of them. Only those nodes follow it, and each the VNIs that it is in: of
// containers that come and go in one segment no other hears.
const SegmentFolder = "/underlay/segment/v1/"

// MemberFolder has, by node, the VNIs that it may have a part in, without a value
// that says anything: what a node has left behind is found without a look at what
// all others have.
const MemberFolder = "/underlay/member/v1/"

// NumberFolder has the VNIs that names of segments have been given, and NameFolder
// the names, by tenant. Nobody follows them: a plugin that has no VNI asks.
const (
	NumberFolder = "/underlay/vni/v1/number/"
	NameFolder   = "/underlay/vni/v1/name/"
)

// MaxVNI is the highest VNI.
const MaxVNI = 1<<24 - 1

// Segment is a node's part in a VXLAN segment.
type Segment struct {
	Version int `json:"version"`
	VNI     int `json:"vni"`
	// Node is the UUID of its ledger, Name a label for people.
	Node lease.Node `json:"node"`
	Name string     `json:"name"`
	// VTEP is the node's address in the underlay, Port the UDP port that it
	// takes VXLAN at.
	VTEP netip.Addr `json:"vtep"`
	Port int        `json:"port"`
	// Endpoints by their MAC.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Endpoint is an attachment in a segment.
type Endpoint struct {
	// MAC in lower case, with colons.
	MAC string `json:"mac"`
	// Addrs that it holds; none where nobody knows them.
	Addrs []netip.Addr `json:"addrs,omitempty"`
}

// SegmentKeys is the folder of a VNI's records.
func SegmentKeys(vni int) string { return fmt.Sprint(SegmentFolder, vni, "/") }

// SegmentKey is the key of a node's record of a VNI.
func SegmentKey(vni int, n lease.Node) string { return SegmentKeys(vni) + string(n) }

// ParseSegmentKey is the inverse of SegmentKey.
func ParseSegmentKey(key string) (vni int, n lease.Node, ok bool) {
	text, node, ok := strings.Cut(strings.TrimPrefix(key, SegmentFolder), "/")
	if !ok || !ValidUUID(node) {
		return 0, "", false
	}
	vni, err := strconv.Atoi(text)
	n = lease.Node(node)
	return vni, n, err == nil && vni >= 1 && vni <= MaxVNI && SegmentKey(vni, n) == key
}

// MemberKeys is the folder of a node's VNIs.
func MemberKeys(n lease.Node) string { return MemberFolder + string(n) + "/" }

// MemberKey is the key that says that a node may have a part in a VNI.
func MemberKey(n lease.Node, vni int) string { return fmt.Sprint(MemberKeys(n), vni) }

// ParseMemberKey is the inverse of MemberKey.
func ParseMemberKey(key string) (n lease.Node, vni int, ok bool) {
	node, text, _ := strings.Cut(strings.TrimPrefix(key, MemberFolder), "/")
	vni, n, ok = ParseSegmentKey(SegmentFolder + text + "/" + node)
	return n, vni, ok && strings.HasPrefix(key, MemberFolder)
}

// EncodeSegment returns the form of a node's part in a segment.
func EncodeSegment(s Segment) []byte {
	s.Version = Version
	return encode(s)
}

// DecodeSegment is the inverse of EncodeSegment.
func DecodeSegment(value []byte) (Segment, error) {
	var s Segment
	if err := decode(value, "segment", &s.Version, &s); err != nil {
		return Segment{}, err
	}
	if !bytes.Equal(encode(s), value) {
		// There may be keys in an endpoint that are not ours.
		if err := s.strict(value); err != nil {
			return Segment{}, err
		}
	}
	if err := s.check(); err != nil {
		return Segment{}, fmt.Errorf("segment.%w", err)
	}
	return s, nil
}

func (s Segment) strict(value []byte) error {
	var w struct {
		Endpoints []json.RawMessage `json:"endpoints"`
	}
	err := json.Unmarshal(value, &w)
	for i := 0; i < len(w.Endpoints) && err == nil; i++ {
		err = ipam.DecodeObject(w.Endpoints[i], fmt.Sprintf("segment.endpoints[%d]", i), new(Endpoint))
	}
	return err
}

func (s Segment) check() error {
	switch {
	case s.VNI < 1 || s.VNI > MaxVNI:
		return fmt.Errorf("vni: %d is not between 1 and %d", s.VNI, MaxVNI)
	case s.Port < 1 || s.Port > 65535:
		return fmt.Errorf("port: %d is not between 1 and 65535", s.Port)
	case !station(s.VTEP):
		return fmt.Errorf("vtep: %s is not the address of a node", s.VTEP)
	}
	if err := checkNode("node", s.Node); err != nil {
		return err
	}
	if s.Name != "" {
		if err := checkName("name", s.Name); err != nil {
			return err
		}
	}
	for i, e := range s.Endpoints {
		hw, err := net.ParseMAC(e.MAC)
		switch {
		case err != nil || len(hw) != 6 || hw.String() != e.MAC || hw[0]&1 != 0 || e.MAC == "00:00:00:00:00:00":
			return fmt.Errorf("endpoints[%d].mac: %q is not the MAC of a station in its one form, as in 02:00:5e:00:53:01", i, e.MAC)
		case i > 0 && e.MAC <= s.Endpoints[i-1].MAC:
			return fmt.Errorf("endpoints[%d].mac: %s comes twice, or after a higher one", i, e.MAC)
		}
		for j, a := range e.Addrs {
			if !station(a) {
				return fmt.Errorf("endpoints[%d].addrs[%d]: %s is not the address of a station", i, j, a)
			}
		}
	}
	return nil
}

// station reports whether an address can be that of one host.
func station(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == "" && !a.Is4In6()
}

// States of a Number. Of one that is neither nobody has been told.
const (
	// Settled: it is the name's until an operator forgets that.
	Settled = "settled"
	// Forgetting: an operator looks whether somebody uses it.
	Forgetting = "forgetting"
)

// Number says, at the key of a VNI, which segment has got it, and Name, at that of
// a segment's name, which VNI that has got. They belong together if they have the
// same Token, which is another one each time that a number is taken.
type Number struct {
	Version int    `json:"version"`
	VNI     int    `json:"vni"`
	Tenant  string `json:"tenant"`
	Name    string `json:"name"`
	Token   string `json:"token"`
	// State is of the Number alone.
	State string `json:"state,omitempty"`
}

// NumberKey is the key of a VNI.
func NumberKey(vni int) string { return fmt.Sprint(NumberFolder, vni) }

// NameKey is the key of a segment's name.
func NameKey(tenant, name string) string { return NameFolder + tenant + "/" + name }

// EncodeNumber returns the form of a Number, at either key.
func EncodeNumber(n Number) []byte {
	n.Version = Version
	return encode(n)
}

// DecodeNumber is the inverse of EncodeNumber.
func DecodeNumber(value []byte) (Number, error) {
	var n Number
	if err := decode(value, "number", &n.Version, &n); err != nil {
		return Number{}, err
	}
	err := CheckSegmentName(n.Tenant, n.Name)
	switch {
	case err != nil:
		return Number{}, fmt.Errorf("number.%w", err)
	case n.VNI < 1 || n.VNI > MaxVNI:
		return Number{}, fmt.Errorf("number.vni: %d is not between 1 and %d", n.VNI, MaxVNI)
	case !ValidUUID(n.Token):
		return Number{}, fmt.Errorf("number.token: %q is no UUID", n.Token)
	case n.State != "" && n.State != Settled && n.State != Forgetting:
		return Number{}, fmt.Errorf("number.state: %q is neither %q nor %q", n.State, Settled, Forgetting)
	}
	return n, nil
}

// CheckSegmentName refuses what is no name of a tenant's segment.
func CheckSegmentName(tenant, name string) error {
	if err := checkName("tenant", tenant); err != nil {
		return err
	}
	return checkName("name", name)
}
