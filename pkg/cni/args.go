package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Args is CNI_ARGS as far as these plugins know it.
type Args struct {
	// IPs asked for, from IP (a list with commas, as Multus sends it).
	IPs []string
	MAC string
	// Owner is "namespace/name" of the pod, empty where the runtime tells none.
	Owner string
}

// ParseArgs parses "K=V;K=V". A value may hold anything but ";", "=" too. An
// unknown key is an error unless IgnoreUnknown is true; keys that runtimes
// send as a matter of course (K8S_...) are known.
func ParseArgs(s string) (Args, error) {
	var a Args
	var unknown []string
	var ignore bool
	var namespace, pod string
	for pair := range strings.SplitSeq(s, ";") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return Args{}, Errorf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		switch key {
		case "IgnoreUnknown":
			switch strings.ToLower(value) {
			case "1", "true":
				ignore = true
			case "0", "false", "":
				ignore = false
			default:
				return Args{}, Errorf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: IgnoreUnknown: %q is neither true nor false", value)
			}
		case "IP":
			for ip := range strings.SplitSeq(value, ",") {
				if ip = strings.TrimSpace(ip); ip != "" {
					a.IPs = append(a.IPs, ip)
				}
			}
		case "MAC":
			a.MAC = value
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			pod = value
		default:
			if !strings.HasPrefix(key, "K8S_") {
				unknown = append(unknown, pair)
			}
		}
	}
	if len(unknown) > 0 && !ignore {
		return Args{}, Errorf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: unknown arguments %q; set IgnoreUnknown=1 to have them ignored", unknown)
	}
	if namespace != "" && pod != "" {
		a.Owner = namespace + "/" + pod
	}
	return a, nil
}

// RequestedIP is an address asked for, and the place where.
type RequestedIP struct {
	Addr  netip.Addr
	Place string
}

// RequestedIPs are the addresses asked for: runtimeConfig.ips, args.cni.ips
// and CNI_ARGS IP, in this order, each once. A prefix length is dropped: the
// pool knows the subnet.
func (r *Request) RequestedIPs(c *NetConf) ([]RequestedIP, error) {
	var out []RequestedIP
	for _, source := range []struct {
		place string
		list  []string
	}{
		{"runtimeConfig.ips", c.RuntimeConfig.IPs},
		{"args.cni.ips", c.Args.CNI.IPs},
		{"CNI_ARGS IP", r.Args.IPs},
	} {
		for i, s := range source.list {
			place := fmt.Sprintf("%s[%d]", source.place, i)
			bare, _, _ := strings.Cut(s, "/")
			a, err := netip.ParseAddr(bare)
			if _, perr := netip.ParsePrefix(s); err != nil || a.Zone() != "" || bare != s && perr != nil {
				return nil, Errorf(types.ErrInvalidNetworkConfig, "%s: %q is not an IP address", place, s)
			}
			a = a.Unmap()
			if !slices.ContainsFunc(out, func(o RequestedIP) bool { return o.Addr == a }) {
				out = append(out, RequestedIP{a, place})
			}
		}
	}
	return out, nil
}
