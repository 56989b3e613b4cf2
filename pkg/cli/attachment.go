package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli/book"
	"github.com/underlay-cni/underlay/pkg/cli/live"
	"github.com/underlay-cni/underlay/pkg/cli/term"
	"github.com/underlay-cni/underlay/pkg/link"
)

func (a *app) attachment() *cobra.Command {
	return term.Noun("attachment", "Interfaces of containers on networks", a.attachmentList(), a.attachmentShow())
}

func (a *app) attachmentList() *cobra.Command {
	var network string
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the attachments that hold an address or share something on the host",
		Example: "  underlayctl attachment list --network lan",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			recs, err := a.attachments(cmd.Context(), func(at ipam.Attachment) bool {
				return network == "" || at.Network == network
			})
			if err != nil {
				return err
			}
			return a.print(cmd, recs, func(t *term.Table) {
				t.Row("NETWORK", "CONTAINER", "IFNAME", "ADDRESSES", "MAC", "USES", "NETNS", "RUNTIME", "SINCE")
				for _, r := range recs {
					at := r.Attachment
					t.Row(at.Network, term.ShortID(at.ContainerID), at.IfName, join(r.Addresses, ","), r.MAC,
						uses(r.Uses), r.Netns.Path, r.Runtime, r.Since)
				}
			})
		},
	}
	c.Flags().StringVar(&network, "network", "", "only those to this `network`")
	return c
}

// attachmentView is a record, those of its addresses, and what there is of it
// in the kernel.
type attachmentView struct {
	ipam.AttachmentRecord
	Records    []ipam.Record `json:"records"`
	NetnsState live.State    `json:"netnsState"`
	// Link is null when there is none.
	Link *linkView `json:"link"`
}

type linkView struct {
	Kind       string         `json:"kind"`
	Mode       string         `json:"mode,omitempty"`
	Flag       string         `json:"flag,omitempty"`
	Up         bool           `json:"up"`
	MTU        int            `json:"mtu"`
	MAC        string         `json:"mac"`
	Addresses  []netip.Prefix `json:"addresses"`
	SourceMACs []string       `json:"sourceMACs,omitempty"`
}

func (a *app) attachmentShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show CONTAINER [IFNAME]",
		Short: "Show what a container holds and what there is of it",
		Long: `Show the attachments of a container, or one of them: what the ledger says, and
what there is in the kernel. The beginning of a container's ID will do.`,
		Example: "  underlayctl attachment show 4f1c2a eth0",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ifName := ""
			if len(args) > 1 {
				ifName = args[1]
			}
			recs, err := a.attachmentsOf(cmd.Context(), args[0], ifName)
			if err != nil {
				return err
			}
			views := make([]attachmentView, 0, len(recs))
			for _, r := range recs {
				v, err := a.lookAt(cmd.Context(), r)
				if err != nil {
					return err
				}
				views = append(views, v)
			}
			return a.print(cmd, views, func(t *term.Table) {
				for i, v := range views {
					if i > 0 {
						t.Line("")
					}
					v.people(t)
				}
			})
		},
	}
}

func (v attachmentView) people(t *term.Table) {
	t.Field("Network", v.Attachment.Network)
	t.Field("Container", v.Attachment.ContainerID)
	t.Field("Interface", v.Attachment.IfName)
	for _, r := range v.Records {
		text := r.Address.String()
		if r.Gateway.IsValid() {
			text += " via " + r.Gateway.String()
		}
		t.Field("Address", fmt.Sprintf("%s of pool %s", text, r.Pool))
	}
	t.Field("MAC", v.MAC)
	t.Field("Uses", uses(v.Uses))
	t.Field("Runtime", v.Runtime)
	t.Field("Since", v.Since)
	t.Field("Namespace", namespace(v.Netns, v.NetnsState))
	if v.Link == nil {
		t.Field("Link", "missing")
		return
	}
	state := "down"
	if v.Link.Up {
		state = "up"
	}
	kind := strings.TrimSpace(strings.Join([]string{v.Link.Kind, v.Link.Mode, v.Link.Flag}, " "))
	t.Field("Link", fmt.Sprintf("%s, %s, MTU %d, MAC %s, %s", kind, state, v.Link.MTU, v.Link.MAC, join(v.Link.Addresses, " ")))
	t.Field("Senders", strings.Join(v.Link.SourceMACs, " "))
}

// lookAt compares a record with the kernel.
func (a *app) lookAt(ctx context.Context, r ipam.AttachmentRecord) (v attachmentView, err error) {
	v.AttachmentRecord = r
	err = a.view(ctx, func(l book.Book) error {
		_, v.Records, _, err = l.Attachment(r.Attachment)
		return err
	})
	if err != nil {
		return v, err
	}
	all, err := live.List()
	if err != nil {
		return v, err
	}
	if v.NetnsState = all.State(r.Netns, r.BootID); v.NetnsState != live.Alive {
		return v, nil
	}
	v.Link, err = lookAtLink(r)
	return v, err
}

// lookAtLink returns nil when there is no such link, or no namespace any more.
func lookAtLink(r ipam.AttachmentRecord) (v *linkView, err error) {
	err = live.In(r.Netns, func(k *link.Handle) error {
		l, err := k.ByName(r.Attachment.IfName)
		if errors.Is(err, link.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		addrs, err := k.Addrs(l.Index)
		if err != nil {
			return err
		}
		v = &linkView{Kind: l.Kind, Mode: l.Mode, Flag: l.Flag, Up: l.Up, MTU: l.MTU, MAC: l.MAC.String(), SourceMACs: macs(l), Addresses: []netip.Prefix{}}
		for _, x := range addrs {
			v.Addresses = append(v.Addresses, x.Prefix)
		}
		return nil
	})
	return v, err
}

// attachments returns the records of those that want says.
func (a *app) attachments(ctx context.Context, want func(ipam.Attachment) bool) ([]ipam.AttachmentRecord, error) {
	recs := []ipam.AttachmentRecord{}
	err := a.view(ctx, func(l book.Book) error {
		return l.Attachments(func(r ipam.AttachmentRecord) error {
			if want(r.Attachment) {
				recs = append(recs, r)
			}
			return nil
		})
	})
	return recs, err
}

// errUnknown is returned for a container that the ledger does not know.
var errUnknown = errors.New("the ledger knows no attachment")

// attachmentsOf returns the attachments of the container that id names, whole
// or by a beginning that no other has; ifName, unless empty, is the only
// interface wanted.
func (a *app) attachmentsOf(ctx context.Context, id, ifName string) ([]ipam.AttachmentRecord, error) {
	recs, err := a.attachments(ctx, func(at ipam.Attachment) bool {
		return strings.HasPrefix(at.ContainerID, id) && (ifName == "" || at.IfName == ifName)
	})
	if err != nil {
		return nil, err
	}
	isWhole := func(r ipam.AttachmentRecord) bool { return r.Attachment.ContainerID == id }
	if slices.ContainsFunc(recs, isWhole) {
		recs = slices.DeleteFunc(recs, func(r ipam.AttachmentRecord) bool { return !isWhole(r) })
	}
	var ids []string
	for _, r := range recs {
		ids = append(ids, r.Attachment.ContainerID)
	}
	slices.Sort(ids)
	switch ids = slices.Compact(ids); {
	case len(ids) == 0 && ifName != "":
		return nil, fmt.Errorf("%w of %q in container %q", errUnknown, ifName, id)
	case len(ids) == 0:
		return nil, fmt.Errorf("%w of container %q", errUnknown, id)
	case len(ids) > 1:
		return nil, fmt.Errorf("%q may be any of the containers %s", id, strings.Join(ids, ", "))
	}
	return recs, nil
}

// uses says what an attachment shares, and which setting of its parent it
// depends on; empty for nothing.
func uses(u ipam.Uses) string {
	if !u.Any() {
		return ""
	}
	var parts []string
	if u.VLAN != 0 {
		parts = append(parts, fmt.Sprintf("vlan %d", u.VLAN))
	}
	if u.HostAccess {
		parts = append(parts, "hostAccess")
	}
	if u.Segment.VNI != 0 {
		parts = append(parts, fmt.Sprintf("segment %d", u.Segment.VNI))
	}
	text := u.Parent
	if len(parts) > 0 {
		text = strings.Join(parts, "+") + " on " + u.Parent
	}
	if u.Port != "" {
		text += " as " + u.Port
	}
	return text
}

func join[T fmt.Stringer](list []T, by string) string {
	text := make([]string, len(list))
	for i, x := range list {
		text[i] = x.String()
	}
	return strings.Join(text, by)
}

// macs are the senders that a source mode link hears, in order.
func macs(l link.Link) []string {
	out := make([]string, len(l.SourceMACs))
	for i, m := range l.SourceMACs {
		out[i] = m.String()
	}
	slices.Sort(out)
	return out
}
