package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/network/bridges"
	"github.com/underlay-cni/underlay/pkg/hostnet"
)

// Parent says which interfaces are meant: exactly one of the fields is set.
type Parent struct {
	// Name of the interface.
	Name string
	// Match is a regular expression for the whole name.
	Match string
	// Reach is an address: the interface by which it is reached.
	Reach netip.Addr
}

// Compile is the expression of Match.
func (p Parent) Compile() (*regexp.Regexp, error) { return regexp.Compile("^(?:" + p.Match + ")$") }

// parents finds the interfaces that Parents mean.
type parents struct {
	all   []parent // by their names for people
	reach []netip.Addr
}

type parent struct {
	Parent
	match *regexp.Regexp
}

func newParents(conf map[string]Parent) (p parents, err error) {
	for _, name := range slices.Sorted(maps.Keys(conf)) {
		one := parent{Parent: conf[name]}
		if one.Match != "" {
			if one.match, err = one.Compile(); err != nil {
				return p, fmt.Errorf("parents.%s.match: %w", name, err)
			}
		}
		if one.Reach.IsValid() {
			p.reach = append(p.reach, one.Reach)
		}
		p.all = append(p.all, one)
	}
	return p, nil
}

// trimPatience is how long an ADD may keep a bridge from the agent: it tries again.
const trimPatience = time.Second

// trim takes from node bridges the gateways of blocks that have gone from this
// node: a route that is in the way of those to the nodes that have them now.
func (t *Task) trim(ctx context.Context, now round) (err error) {
	if t.conf.RunDir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, trimPatience)
	defer cancel()
	for _, l := range now.state.Links {
		stray := slices.ContainsFunc(l.Addrs, func(a hostnet.Addr) bool {
			pool, own := now.snapshot.Within(a.Prefix)
			return !a.IsSingleIP() && pool != "" && !own
		})
		if !stray {
			continue
		}
		gone, terr := bridges.Trim(ctx, t.conf.Netns, t.conf.RunDir, l.Name, func(block netip.Prefix) (foreign bool, err error) {
			pool, _ := now.snapshot.Within(block)
			if pool == "" {
				return false, nil
			}
			return foreign, t.conf.Ledger.With(func(l *ledger.Ledger) error {
				// The registry may not have told yet of one that was leased a moment ago.
				b, err := l.Book(pool, block)
				foreign = b.Empty()
				return err
			})
		})
		if len(gone) > 0 {
			t.log.Info("a bridge is not the gateway any more of blocks that have gone from this node", "dev", l.Name, "addrs", gone)
		}
		err = errors.Join(err, terr)
	}
	return err
}

// devs are the interfaces, the preferred one first.
func (p parents) devs(s hostnet.State) []string {
	if len(p.all) == 0 {
		return s.Default
	}
	var out []string
	add := func(name string) {
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, one := range p.all {
		switch {
		case one.match != nil:
			for _, l := range s.Links {
				if one.match.MatchString(l.Name) {
					add(l.Name)
				}
			}
		case one.Reach.IsValid():
			add(s.Reach[one.Reach])
		default:
			add(one.Name)
		}
	}
	return out
}
