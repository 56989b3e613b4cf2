// Package migrate reads what other address managers have given out, host-local
// and whereabouts, and plans what becomes of it in a ledger: what a running
// container has is held, all else is kept out of use. It changes nothing.
package migrate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/cli/live"
)

// Entry is an address that another address manager has given out.
type Entry struct {
	Addr        netip.Addr
	ContainerID string
	// IfName is "" where the manager did not write it down.
	IfName string
	// Owner is the pod, "namespace/name", where it is known.
	Owner string
	// Subnet, if the manager says which one it is.
	Subnet netip.Prefix
	// Place in its files: file and line.
	Place string
}

// Error is what is wrong with an entry, or with what should have been one.
type Error struct {
	Place string
	Err   error
}

func (e *Error) Error() string { return e.Place + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func bad(place, format string, args ...any) error { return &Error{place, fmt.Errorf(format, args...)} }

// Row says what becomes of an entry.
type Row struct {
	Address     netip.Prefix `json:"address"`
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName,omitempty"`
	Owner       string       `json:"owner,omitempty"`
	// Becomes is held, reserved or dropped.
	Becomes string `json:"becomes"`
	// Netns of what is held.
	Netns string `json:"netns,omitempty"`
	// From is the place of the entry.
	From string `json:"from"`
}

// What a Row becomes.
const (
	Held     = string(ipam.Held)
	Reserved = string(ipam.Reserved)
	Dropped  = "dropped"
)

// Known is what the ledger has already.
type Known struct {
	Pools []ipam.Pool
	// Records of addresses that nobody can have now.
	Records     map[netip.Addr]ipam.Record
	Attachments map[ipam.Attachment]bool
}

// Config of a plan. All but DropDead is required.
type Config struct {
	// Manager that the entries are from.
	Manager string
	// Network whose local pool takes them in.
	Network string
	Known   Known
	// Carriers are the links that have addresses, by address.
	Carriers map[netip.Addr][]live.Carrier
	// DropDead leaves out what no container on this node has.
	DropDead bool
}

// Plan says what becomes of entries: a list for Ledger.Import, and a row for each.
// An entry that cannot be taken in is an Error.
func Plan(c Config, entries []Entry) ([]ledger.Found, []Row, error) {
	p := planner{Config: c, at: make(map[ipam.Attachment]int)}
	for _, pool := range c.Known.Pools {
		if pool.UUID == "" && pool.Name == c.Network {
			p.pool = pool
		}
	}
	entries = slices.Clone(entries)
	// Addresses of an attachment are in the order of the range sets.
	slices.SortStableFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(p.set(a.Addr), p.set(b.Addr)), a.Addr.Compare(b.Addr))
	})
	seen := make(map[netip.Addr]string)
	for _, e := range entries {
		if before, twice := seen[e.Addr]; twice {
			return nil, nil, bad(e.Place, "address %s is in %s too", e.Addr, before)
		}
		seen[e.Addr] = e.Place
		if err := p.take(e); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(p.rows, func(a, b Row) int { return a.Address.Addr().Compare(b.Address.Addr()) })
	return append(p.held, p.kept...), p.rows, nil
}

type planner struct {
	Config
	pool ipam.Pool
	held []ledger.Found
	// at has the places of attachments in held.
	at   map[ipam.Attachment]int
	kept []ledger.Found
	rows []Row
}

// set is the number of the range set that gives out an address.
func (p *planner) set(a netip.Addr) int {
	i := slices.IndexFunc(p.pool.Sets, func(s ipam.RangeSet) bool { _, ok := s.Find(a); return ok })
	if i < 0 {
		return len(p.pool.Sets)
	}
	return i
}

func (p *planner) take(e Entry) error {
	if rec, there := p.Known.Records[e.Addr]; there {
		return bad(e.Place, "address %s is in the ledger already: it is %s", e.Addr, rec.State)
	}
	carriers := slices.DeleteFunc(slices.Clone(p.Carriers[e.Addr]), func(c live.Carrier) bool {
		return e.IfName != "" && c.IfName != e.IfName
	})
	if len(carriers) == 1 {
		adopted, err := p.adopt(e, carriers[0])
		if err != nil || adopted {
			return err
		}
	}
	row := Row{Address: p.prefix(e), ContainerID: e.ContainerID, IfName: e.IfName, Owner: e.Owner, Becomes: Reserved, From: e.Place}
	if len(carriers) == 0 && p.DropDead {
		row.Becomes = Dropped
		p.rows = append(p.rows, row)
		return nil
	}
	who := "container " + e.ContainerID
	if e.Owner != "" {
		who = fmt.Sprintf("pod %s (%s)", e.Owner, who)
	}
	why := "which is not running here"
	if len(carriers) > 0 {
		why = fmt.Sprintf("and in use by %s in %s", carriers[0].IfName, carriers[0].Netns.Path)
	}
	p.kept = append(p.kept, ledger.Found{
		Pool: p.Network, Addresses: []ipam.Address{{Prefix: row.Address, Gateway: p.gateway(e.Addr)}},
		Reason: fmt.Sprintf("%s gave it to %s, %s (%s)", p.Manager, who, why, e.Place),
	})
	p.rows = append(p.rows, row)
	return nil
}

// adopt takes in what a running container has. It does not where another address
// of the attachment is in another namespace.
func (p *planner) adopt(e Entry, c live.Carrier) (bool, error) {
	att := ipam.Attachment{Network: p.Network, ContainerID: e.ContainerID, IfName: c.IfName}
	if p.Known.Attachments[att] {
		return false, bad(e.Place, "%s is in the ledger already", att)
	}
	i, there := p.at[att]
	if !there {
		i = len(p.held)
		p.at[att] = i
		p.held = append(p.held, ledger.Found{Attachment: att, Netns: c.Netns, MAC: c.MAC, Owner: e.Owner, Pool: p.Network})
	}
	f := &p.held[i]
	if f.Netns != c.Netns {
		return false, nil
	}
	f.Addresses = append(f.Addresses, c.Address)
	p.rows = append(p.rows, Row{Address: c.Address.Prefix, ContainerID: e.ContainerID, IfName: c.IfName, Owner: e.Owner,
		Becomes: Held, Netns: c.Netns.Path, From: e.Place})
	return true, nil
}

// prefix is the address with the length of its subnet, as far as that is known.
func (p *planner) prefix(e Entry) netip.Prefix {
	if r, ok := p.pool.Find(e.Addr); ok {
		return netip.PrefixFrom(e.Addr, r.Subnet.Bits())
	}
	if e.Subnet.IsValid() {
		return netip.PrefixFrom(e.Addr, e.Subnet.Bits())
	}
	for _, f := range p.held {
		for _, a := range f.Addresses {
			if a.Prefix.Contains(e.Addr) {
				return netip.PrefixFrom(e.Addr, a.Prefix.Bits())
			}
		}
	}
	return netip.PrefixFrom(e.Addr, e.Addr.BitLen())
}

func (p *planner) gateway(a netip.Addr) netip.Addr {
	r, _ := p.pool.Find(a)
	return r.Gateway
}
