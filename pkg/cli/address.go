package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/live"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

func (a *app) address() *cobra.Command {
	return term.Noun("address", "Addresses that are held, rest, or are kept out of use",
		a.addressList(), a.addressShow(), a.addressHistory(), a.addressRelease(), a.addressReserve(), a.addressUnreserve())
}

// knowsPool is nil for a pool of this node or of the cluster; "" means all.
func (a *app) knowsPool(cmd *cobra.Command, name string) error {
	if name == "" {
		return nil
	}
	known := func(p ipam.Pool) bool { return p.Name == name }
	var all []ipam.Pool
	err := a.view(cmd.Context(), func(l book.Book) (err error) {
		all, err = l.Pools()
		return err
	})
	if err != nil || slices.ContainsFunc(all, known) {
		return err
	}
	views, err := a.allPools(cmd)
	if err != nil || slices.ContainsFunc(views, func(p poolView) bool { return p.Name == name }) {
		return err
	}
	return term.Hint(fmt.Errorf("--pool: no pool %q is known here", name), "see: underlayctl pool list")
}

func (a *app) addressList() *cobra.Command {
	var pool, state, network string
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the addresses that are not free",
		Example: "  underlayctl address list --pool lan --state held",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch ipam.State(state) {
			case "", ipam.Held, ipam.Cooling, ipam.Quarantined, ipam.Reserved, ipam.Lent:
			default:
				return term.Misuse("--state: %q is none of held, cooling, quarantined, reserved, lent", state)
			}
			if err := a.knowsPool(cmd, pool); err != nil {
				return err
			}
			recs := []ipam.Record{}
			err := a.view(cmd.Context(), func(l book.Book) error {
				return l.Records(func(r ipam.Record) error {
					if (pool == "" || r.Pool == pool) && (state == "" || string(r.State) == state) &&
						(network == "" || r.Attachment.Network == network) {
						recs = append(recs, r)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
			return a.print(cmd, recs, func(t *term.Table) {
				t.Row("ADDRESS", "POOL", "STATE", "CONTAINER", "IFNAME", "NETNS", "MAC", "OWNER", "SINCE", "UNTIL")
				for _, r := range recs {
					t.Row(r.Address, r.Pool, r.State, term.ShortID(r.Attachment.ContainerID), r.Attachment.IfName,
						r.Netns.Path, r.MAC, r.Owner, r.Since, r.Until)
				}
			})
		},
	}
	c.Flags().StringVar(&pool, "pool", "", "only those of this `pool`")
	c.Flags().StringVar(&state, "state", "", "only those in this `state`: held, cooling, quarantined, reserved or lent")
	c.Flags().StringVar(&network, "network", "", "only those of attachments to this `network`")
	return c
}

// addressView is a record and, of a held address, what has become of its
// holder's namespace.
type addressView struct {
	ipam.Record
	NetnsState live.State `json:"netnsState,omitempty"`
}

func (a *app) addressShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show ADDRESS",
		Short:   "Show all that is known of an address",
		Example: "  underlayctl address show 192.0.2.10",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			var v addressView
			err = a.view(cmd.Context(), func(l book.Book) error {
				v, err = lookUp(l, addr)
				return err
			})
			if err != nil {
				return err
			}
			return a.print(cmd, v, func(t *term.Table) {
				t.Field("Address", v.Address)
				t.Field("Pool", v.Pool)
				t.Field("Gateway", v.Gateway)
				t.Field("State", v.State)
				t.Field("Reason", v.Reason)
				t.Field("Network", v.Attachment.Network)
				t.Field("Container", v.Attachment.ContainerID)
				t.Field("Interface", v.Attachment.IfName)
				t.Field("MAC", v.MAC)
				t.Field("Namespace", namespace(v.Netns, v.NetnsState))
				t.Field("Runtime", v.Runtime)
				t.Field("Owner", v.Owner)
				t.Field("Since", v.Since)
				t.Field("Until", v.Until)
				t.Field("Missed", v.MissedAt)
			})
		},
	}
}

func (a *app) addressHistory() *cobra.Command {
	var when string
	c := &cobra.Command{
		Use:   "history ADDRESS",
		Short: "Show who had an address, and until when",
		Long: `Show who held an address, the first one first; the last one may hold it still. The
ledger remembers some 65,000 holds of all addresses that have ended. An ADD that
failed held nothing.`,
		Example: "  underlayctl address history 192.0.2.10 --at 14:05",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			var at time.Time
			if when != "" {
				if at, err = parseAt(when, time.Now()); err != nil {
					return err
				}
			}
			holds := []ipam.Hold{}
			err = a.view(cmd.Context(), func(l book.Book) error {
				return l.History(addr, func(h ipam.Hold) error {
					if at.IsZero() || h.At(at) {
						holds = append(holds, h)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
			return a.print(cmd, holds, func(t *term.Table) {
				if len(holds) == 0 && !at.IsZero() {
					t.Line("nobody is known to have had %s at %s", addr, at.UTC().Format(time.RFC3339))
					return
				}
				t.Row("SINCE", "UNTIL", "NETWORK", "CONTAINER", "IFNAME", "OWNER", "MAC", "NETNS")
				for _, h := range holds {
					t.Row(h.Since, h.Until, h.Attachment.Network, term.ShortID(h.Attachment.ContainerID), h.Attachment.IfName, h.Owner, h.MAC, h.Netns)
				}
			})
		},
	}
	c.Flags().StringVar(&when, "at", "", "only who had it at this `time`: 14:05, local and in the last 24 hours, \"2026-01-02 14:05\", or RFC 3339")
	return c
}

// parseAt reads a point in time as people write it, in the zone of now.
func parseAt(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		t, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		day := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		if day.After(now) {
			day = day.AddDate(0, 0, -1)
		}
		return day, nil
	}
	return time.Time{}, term.Misuse(`--at: %q is no time such as 14:05, "2026-01-02 14:05" or 2026-01-02T14:05:00Z`, s)
}

// namespace is its path, with its state where that matters.
func namespace(n ipam.Netns, s live.State) string {
	if s == "" {
		return n.Path
	}
	return fmt.Sprintf("%s (%s)", n.Path, s)
}

func (a *app) addressRelease() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "release ADDRESS...",
		Short: "Take addresses from holders that are gone, or back into use",
		Long: `Take an address from a container that is gone, which lets it cool down like
any other, or end its rest, quarantine or reservation, which frees it at once.`,
		Example: "  underlayctl address release 192.0.2.10",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var addrs []netip.Addr
			for _, s := range args {
				addr, err := parseAddr(s)
				if err != nil {
					return err
				}
				addrs = append(addrs, addr)
			}
			was := []ipam.Record{}
			err := a.update(cmd.Context(), func(l book.Book) error {
				for _, addr := range addrs {
					rec, err := release(l, addr, force)
					if err != nil {
						return err
					}
					was = append(was, rec)
				}
				return nil
			})
			return errors.Join(a.print(cmd, was, func(t *term.Table) {
				for _, r := range was {
					t.Line("released %s, which was %s", r.Address.Addr(), holder(r))
				}
			}), err)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "even if the holder is alive: it goes on using the address")
	return c
}

// release releases one address and returns what its record was.
func release(l book.Book, addr netip.Addr, force bool) (ipam.Record, error) {
	v, err := lookUp(l, addr)
	if err != nil {
		return v.Record, err
	}
	if !force && v.State == ipam.Held && v.NetnsState != live.Gone {
		err := fmt.Errorf("address %s is in use: %s, whose namespace %s is %s", addr, holder(v.Record), v.Netns.Path, v.NetnsState)
		return v.Record, term.Hint(err, "stop the container, which releases it; --force gives its address to others while it uses it")
	}
	return l.ReleaseAddress(addr)
}

// holder says what a record says of an address.
func holder(r ipam.Record) string {
	switch att := r.Attachment; {
	case r.State == ipam.Held:
		return fmt.Sprintf("held by %s of container %s on network %s", att.IfName, term.ShortID(att.ContainerID), att.Network)
	case r.Reason != "":
		return fmt.Sprintf("%s: %s", r.State, r.Reason)
	}
	return string(r.State)
}

// lookUp returns the record of an address that is not free.
func lookUp(l book.Book, addr netip.Addr) (v addressView, err error) {
	found := errors.New("found")
	err = l.Records(func(r ipam.Record) error {
		if r.Address.Addr() == addr {
			v.Record = r
			return found
		}
		return nil
	})
	if err == nil {
		return v, fmt.Errorf("address %s is free on this node: its ledger has no record of it", addr)
	}
	if !errors.Is(err, found) {
		return v, err
	}
	if v.State == ipam.Held {
		all, err := live.List()
		if err != nil {
			return v, err
		}
		v.NetnsState = all.State(v.Netns, v.BootID)
	}
	return v, nil
}

func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, term.Misuse("%q is not an IP address", s)
	}
	return addr.Unmap(), nil
}
