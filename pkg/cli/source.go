package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli/live"
	"github.com/underlay-cni/underlay/pkg/cli/term"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

func (a *app) source() *cobra.Command {
	return term.Noun("source", "Senders that a container on a macvlan in mode source hears",
		a.sourceVerb("add CONTAINER MAC...", "Let senders in", "add 4f1c2a 02:00:00:00:00:01", (*link.Handle).AddSourceMAC),
		a.sourceVerb("remove CONTAINER MAC...", "Keep senders out", "remove 4f1c2a 02:00:00:00:00:01", (*link.Handle).RemoveSourceMAC),
		a.sourceVerb("list CONTAINER", "List the senders", "list 4f1c2a", nil))
}

// sourceView is the list of one interface.
type sourceView struct {
	Container  string   `json:"container"`
	IfName     string   `json:"ifName"`
	Netns      string   `json:"netns"`
	SourceMACs []string `json:"sourceMACs"`
}

// sourceVerb is a command that shows the list after having done change with
// each MAC; nil changes nothing.
func (a *app) sourceVerb(use, short, example string, change func(*link.Handle, int, net.HardwareAddr) error) *cobra.Command {
	var at target
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Long: short + `.

The container is found in the ledger by its ID, the beginning of which will do;
where another IPAM plugin gives it its addresses, --netns names its namespace.
A change holds at once, and until the container is detached.`,
		Example: "  underlayctl source " + example,
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			at.container = args[0]
			var list []net.HardwareAddr
			for _, s := range args[1:] {
				mac, err := ipam.ParseMAC("MAC", s)
				if err != nil {
					return term.Usage(err)
				}
				list = append(list, mac)
			}
			v, err := a.changeSources(cmd.Context(), at, list, change)
			if err != nil {
				return err
			}
			return a.print(cmd, v, func(t *term.Table) {
				t.Row("CONTAINER", "IFNAME", "MAC")
				for _, mac := range v.SourceMACs {
					t.Row(term.ShortID(v.Container), v.IfName, mac)
				}
			})
		},
	}
	if change == nil {
		c.Args = cobra.ExactArgs(1)
	}
	c.Flags().StringVar(&at.ifName, "ifname", "", "`interface` in the container (default the one in mode source)")
	c.Flags().StringVar(&at.netns, "netns", "", "`path` of the container's namespace, such as /run/netns/NAME")
	return c
}

// target is how the user names a link in a container.
type target struct{ container, ifName, netns string }

func (a *app) changeSources(ctx context.Context, at target, list []net.HardwareAddr, change func(*link.Handle, int, net.HardwareAddr) error) (v sourceView, err error) {
	ns, err := a.enter(ctx, at)
	if err != nil {
		return v, err
	}
	defer ns.Close()
	k, err := link.OpenAt(ns.Fd())
	if err != nil {
		return v, err
	}
	defer k.Close()
	l, err := at.find(k)
	if err != nil {
		return v, err
	}
	for _, mac := range list {
		if err := change(k, l.Index, mac); err != nil {
			return v, err
		}
	}
	if l, err = k.ByIndex(l.Index); err != nil {
		return v, err
	}
	v = sourceView{Container: at.container, IfName: l.Name, Netns: ns.Path(), SourceMACs: macs(l)}
	if _, id, ours := live.ParseAlias(l.Alias); ours {
		v.Container = id
	}
	return v, nil
}

// enter opens the container's namespace.
func (a *app) enter(ctx context.Context, at target) (*netns.NS, error) {
	if at.netns != "" {
		return netns.Open(at.netns)
	}
	recs, err := a.attachmentsOf(ctx, at.container, at.ifName)
	if errors.Is(err, errUnknown) || errors.Is(err, errMissing) {
		return nil, term.Hint(err, "if another IPAM plugin gives it its addresses, say where it is: --netns /run/netns/NAME")
	}
	if err != nil {
		return nil, err
	}
	r := recs[0].Netns // the same for all interfaces of a container
	return netns.Find(r.Path, r.Dev, r.Inode)
}

// find finds the link, which must be in mode source.
func (at target) find(k *link.Handle) (link.Link, error) {
	all, err := k.List()
	if err != nil {
		return link.Link{}, err
	}
	var hears []link.Link
	var others []string
	for _, l := range all {
		_, id, ours := live.ParseAlias(l.Alias)
		switch {
		case at.ifName != "" && l.Name != at.ifName, ours && !strings.HasPrefix(id, at.container):
		case l.Kind == "macvlan" && l.Mode == link.ModeSource:
			hears = append(hears, l)
		case l.Kind == "macvlan":
			others = append(others, fmt.Sprintf("%s (mode %s)", l.Name, l.Mode))
		case at.ifName != "":
			others = append(others, fmt.Sprintf("%s (%s)", l.Name, l.Kind))
		}
	}
	switch {
	case len(hears) == 1:
		return hears[0], nil
	case len(hears) > 1:
		err := fmt.Errorf("container %q has %s in mode source", at.container, term.Plural(len(hears), "interface", "interfaces"))
		return link.Link{}, term.Hint(err, "choose one with --ifname")
	case len(others) > 0:
		return link.Link{}, fmt.Errorf("container %q has no interface in mode source, which alone has a list of senders; it has %s",
			at.container, strings.Join(others, ", "))
	}
	return link.Link{}, fmt.Errorf("container %q has no such macvlan interface in that namespace", at.container)
}
