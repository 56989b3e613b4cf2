package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli/term"
	"github.com/underlay-cni/underlay/pkg/digest"
	"github.com/underlay-cni/underlay/pkg/link"
)

// confVersion is the newest one that containerd 1.6 and nerdctl 1 know.
const confVersion = "1.0.0"

func (a *app) conf() *cobra.Command {
	return term.Noun("conf", "Write network configurations",
		a.confFor("nerdctl", func(c *confList) string {
			sum := digest.Sum256([]byte(c.Name))
			c.nerdctlKeys = &nerdctlKeys{ID: fmt.Sprintf("%x", sum), Labels: map[string]string{}}
			return "/etc/cni/net.d/nerdctl-" + c.Name + ".conflist"
		}),
		a.confFor("containerd", func(c *confList) string {
			return "/etc/cni/net.d/10-" + c.Name + ".conflist"
		}))
}

// confList is a network configuration list; its order is that of the file.
type confList struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	*nerdctlKeys
	Plugins []pluginConf `json:"plugins"`
}

// nerdctlKeys make a network one of nerdctl's own, for `nerdctl network`. The
// ID is the sha256 of the name.
type nerdctlKeys struct {
	ID     string            `json:"nerdctlID"`
	Labels map[string]string `json:"nerdctlLabels"`
}

type pluginConf struct {
	Type         string          `json:"type"`
	Master       string          `json:"master"`
	VLAN         int             `json:"vlan,omitempty"`
	Mode         string          `json:"mode"`
	Flag         string          `json:"flag,omitempty"`
	HostAccess   bool            `json:"hostAccess,omitempty"`
	DataDir      string          `json:"dataDir,omitempty"`
	RunDir       string          `json:"runDir,omitempty"`
	Capabilities map[string]bool `json:"capabilities"`
	IPAM         ipamConf        `json:"ipam"`
}

type ipamConf struct {
	Type   string        `json:"type"`
	Pool   string        `json:"pool,omitempty"`
	Ranges [][]rangeConf `json:"ranges,omitempty"`
	Routes []routeConf   `json:"routes,omitempty"`
}

type rangeConf struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart,omitempty"`
	RangeEnd   string `json:"rangeEnd,omitempty"`
	Gateway    string `json:"gateway,omitempty"`
}

type routeConf struct {
	Dst string `json:"dst"`
}

// confFor is the command for one runtime; finish adds what that wants and
// returns where it looks for the file.
func (a *app) confFor(runtime string, finish func(*confList) (path string)) *cobra.Command {
	var p pluginConf
	var ip4, ip6 rangeConf
	c := &cobra.Command{
		Use:   runtime + " NAME --master INTERFACE --subnet PREFIX | --pool POOL",
		Short: "Write a macvlan or ipvlan network for " + runtime + " to stdout",
		Long: "Write a macvlan or ipvlan network for " + runtime + ` to stdout, and where to save
it to stderr. Its cniVersion is the newest that all versions of the runtime
know; where the runtime has containerd 2, set 1.1.0, for GC and STATUS.`,
		Example: "  underlayctl conf " + runtime + " lan --master eth1 --subnet 192.0.2.0/24 \\\n" +
			"    --range-start 192.0.2.100 --range-end 192.0.2.199",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.DataDir, p.RunDir = a.dataDir, a.runDir
			list := confList{CNIVersion: confVersion, Name: args[0], Plugins: []pluginConf{p}}
			if err := list.complete(ip4, ip6); err != nil {
				return term.Usage(err)
			}
			notes := append([]string{"save this as " + finish(&list)}, list.Plugins[0].notes()...)
			if err := term.JSON(cmd.OutOrStdout(), list); err != nil {
				return err
			}
			for _, n := range notes {
				fmt.Fprintln(cmd.ErrOrStderr(), "#", n)
			}
			return nil
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&p.Type, "type", "macvlan", "`name` of the plugin's binary: macvlan, ipvlan, or that with a prefix")
	f.StringVar(&p.Master, "master", "", "`interface` of the host that the containers sit on (required)")
	f.IntVar(&p.VLAN, "vlan", 0, "`id` of the VLAN on it that they are in (default none)")
	f.StringVar(&p.Mode, "mode", "", "`mode` bridge (default), private, vepa, passthru or source; of ipvlan l2 (default), l3 or l3s")
	f.StringVar(&p.Flag, "flag", "", "`flag` of ipvlan: bridge (default), private or vepa")
	f.BoolVar(&p.HostAccess, "host-access", false, "let this host and its containers reach each other (mode or flag bridge)")
	f.StringVar(&p.IPAM.Pool, "pool", "", "`name` of the cluster pool to draw on, instead of a subnet")
	ip4.flags(c, "", "", "192.0.2.0/24")
	ip6.flags(c, "ip6-", "IPv6: ", "2001:db8::/64")
	return c
}

// flags adds those of one range set, of which an attachment gets one address.
func (r *rangeConf) flags(c *cobra.Command, prefix, label, subnet string) {
	f := c.Flags()
	f.StringVar(&r.Subnet, prefix+"subnet", "", label+"`prefix` of the subnet, such as "+subnet)
	f.StringVar(&r.Gateway, prefix+"gateway", "", label+"`address` of the gateway (default the first of the subnet)")
	f.StringVar(&r.RangeStart, prefix+"range-start", "", label+"first `address` to give out")
	f.StringVar(&r.RangeEnd, prefix+"range-end", "", label+"last `address` to give out")
}

// complete checks a list as the plugin would, and adds what it leaves open: the
// mode, the gateways, and a default route to each of them.
func (c *confList) complete(sets ...rangeConf) error {
	p := &c.Plugins[0]
	p.IPAM.Type = "underlay"
	for _, r := range sets {
		if r != (rangeConf{}) {
			p.IPAM.Ranges = append(p.IPAM.Ranges, []rangeConf{r})
		}
	}
	if err := c.check(); err != nil {
		return err
	}
	if err := p.completeKind(); err != nil {
		return err
	}
	object, err := json.Marshal(p.IPAM)
	if err != nil {
		return err
	}
	loaded, err := ipam.Load(object, c.Name, nil)
	if err != nil {
		return err
	}
	for i, set := range loaded.Pool.Sets {
		gw := set[0].Gateway
		if !gw.IsValid() || p.layer3() {
			continue
		}
		p.IPAM.Ranges[i][0].Gateway = gw.String()
		dst := "0.0.0.0/0"
		if gw.Is6() {
			dst = "::/0"
		}
		p.IPAM.Routes = append(p.IPAM.Routes, routeConf{dst})
	}
	return nil
}

// check checks what all kinds of links have.
func (c *confList) check() error {
	p := c.Plugins[0]
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return fmt.Errorf("network name %q: letters, digits, dot, dash and underscore make one", c.Name)
	}
	if p.Master == "" {
		return fmt.Errorf("--master is missing")
	}
	if err := utils.ValidateInterfaceName(p.Master); err != nil {
		return fmt.Errorf("--master: %q is no interface name: %s", p.Master, strings.TrimSpace(err.Msg+" "+err.Details))
	}
	switch {
	case len(p.IPAM.Ranges) == 0 && p.IPAM.Pool == "":
		return fmt.Errorf("--subnet is missing, or --pool")
	case len(p.IPAM.Ranges) > 0 && p.IPAM.Pool != "":
		return fmt.Errorf("--subnet: the ranges of pool %q are in the registry", p.IPAM.Pool)
	case p.VLAN < 0 || p.VLAN > 4094:
		return fmt.Errorf("--vlan: %d is not a VLAN id from 1 to 4094", p.VLAN)
	}
	return nil
}

// completeKind checks what the kind of link has besides, and completes it. The
// name of the binary tells the kind, since `make install PREFIX=...` only puts
// something before it.
func (p *pluginConf) completeKind() error {
	p.Capabilities = map[string]bool{"ips": true}
	switch {
	case p.isIpvlan():
		return p.completeIpvlan()
	case strings.HasSuffix(p.Type, "macvlan"):
		return p.completeMacvlan()
	}
	return fmt.Errorf("--type: %q ends neither in macvlan nor in ipvlan", p.Type)
}

func (p *pluginConf) completeMacvlan() error {
	if p.Mode == "" {
		p.Mode = link.ModeBridge
	}
	p.Capabilities["mac"] = true
	switch {
	case !link.IsMacvlanMode(p.Mode):
		return fmt.Errorf("--mode: %q is none of bridge, private, vepa, passthru, source", p.Mode)
	case p.Flag != "":
		return fmt.Errorf("--flag: has a meaning with --type ipvlan only")
	case p.HostAccess && p.Mode != link.ModeBridge:
		return fmt.Errorf("--host-access: mode %s keeps siblings apart, and the host is reached through one; use mode bridge", p.Mode)
	}
	return nil
}

func (p *pluginConf) completeIpvlan() error {
	if p.Mode == "" {
		p.Mode = link.ModeL2
	}
	if p.Flag == "" {
		p.Flag = link.FlagBridge
	}
	switch {
	case !link.IsIpvlanMode(p.Mode):
		return fmt.Errorf("--mode: %q is none of l2, l3, l3s", p.Mode)
	case !link.IsIpvlanFlag(p.Flag):
		return fmt.Errorf("--flag: %q is none of bridge, private, vepa", p.Flag)
	case p.HostAccess && p.Flag != link.FlagBridge:
		return fmt.Errorf("--host-access: flag %s keeps siblings apart, and the host is reached through one; use flag bridge", p.Flag)
	}
	for _, set := range p.IPAM.Ranges {
		if p.layer3() && set[0].Gateway != "" {
			return fmt.Errorf("--gateway: %s has no meaning in mode %s: what leaves a container goes to the host's routing table", set[0].Gateway, p.Mode)
		}
	}
	return nil
}

func (p *pluginConf) isIpvlan() bool { return strings.HasSuffix(p.Type, "ipvlan") }

// layer3 reports whether there are no gateways on the link.
func (p *pluginConf) layer3() bool { return p.isIpvlan() && p.Mode != link.ModeL2 }

// notes are what the user has to know beside the configuration.
func (p *pluginConf) notes() (notes []string) {
	for _, set := range p.IPAM.Ranges {
		switch r := set[0]; {
		case p.layer3():
			notes = append(notes, fmt.Sprintf("the network has to route what this gives out of %s to this host: in mode %s nobody answers for it", r.Subnet, p.Mode))
		case r.RangeStart == "" && r.RangeEnd == "":
			notes = append(notes, fmt.Sprintf("it gives out all of %s: where others are in there, DHCP or another host with containers, use --range-start and --range-end", r.Subnet))
		}
	}
	carrier := p.Master
	if p.VLAN != 0 {
		carrier, _ = link.VLANName(p.Master, p.VLAN)
	}
	bridge := p.Mode == link.ModeBridge || p.Flag == link.FlagBridge
	switch {
	case p.Mode == link.ModeSource:
		notes = append(notes, `nothing gets in before "sourceMACs" lists senders`)
	case bridge && !p.HostAccess:
		notes = append(notes, "this host and its containers do not reach each other: that takes --host-access")
	}
	if p.isIpvlan() {
		notes = append(notes, fmt.Sprintf("all that is on %s has to be ipvlan in mode %s with flag %s", carrier, p.Mode, p.Flag))
	}
	return notes
}
