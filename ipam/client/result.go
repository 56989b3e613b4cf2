package client

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
)

// Result is what IPAM answers for an allocation: addresses with gateways, the
// routes of the configuration, or those that go with a cluster pool, and what
// DNS returned. It names no interfaces, as the specification has it for IPAM
// plugins.
func Result(cfg ipam.Config, a ipam.Allocation, dns types.DNS) *current.Result {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: dns}
	for _, x := range a.Addresses {
		ip := &current.IPConfig{Address: ipNet(x.Prefix)}
		if x.Gateway.IsValid() {
			ip.Gateway = x.Gateway.AsSlice()
		}
		res.IPs = append(res.IPs, ip)
	}
	routes := cfg.Routes
	if cfg.Cluster != "" {
		routes = a.Routes
	}
	for _, r := range routes {
		out := &types.Route{Dst: ipNet(r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: r.Scope}
		if r.GW.IsValid() {
			out.GW = r.GW.AsSlice()
		}
		res.Routes = append(res.Routes, out)
	}
	return res
}

// DNS reads the resolvConf of the configuration, if it names one.
func DNS(cfg ipam.Config) (types.DNS, error) {
	if cfg.ResolvConf == "" {
		return types.DNS{}, nil
	}
	dns, err := readResolvConf(cfg.ResolvConf)
	if err != nil {
		return types.DNS{}, &ipam.FieldError{Place: "ipam.resolvConf", Msg: err.Error()}
	}
	return dns, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// readResolvConf reads resolv.conf(5) as far as a CNI result can tell it.
func readResolvConf(path string) (dns types.DNS, err error) {
	f, err := os.Open(path)
	if err != nil {
		return dns, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	if err := sc.Err(); err != nil {
		return dns, fmt.Errorf("read %q: %w", path, err)
	}
	return dns, nil
}
