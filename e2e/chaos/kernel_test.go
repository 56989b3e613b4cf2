package chaos_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/cluster"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// kernel: what the host's kernel has of ours is what the attachments on it and the
// leases of its peers call for.
func (h *host) kernel() error {
	leases, err := h.API.Leases(h.x.t.Context(), api.LeaseFilter{})
	if err != nil {
		return err
	}
	got, err := h.found()
	if err != nil {
		return err
	}
	want := h.wanted(leases)
	// Of a container that was lost what it shared may be left.
	for _, line := range h.shared() {
		want = slices.DeleteFunc(want, func(l string) bool { return l == line })
		got = slices.DeleteFunc(got, func(l string) bool { return l == line })
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("the kernel (-wanted +found):\n%s", diff)
	}
	return nil
}

// sharing has what attachments of a network share on the host.
var sharing = map[string][]string{
	"near": {"link macvlan"},
	"seg":  {"link br5001 bridge", "link lg5001 veth", "link lp5001 veth", "link " + segDev + " vxlan"},
}

// shared is what the containers that were lost shared.
func (h *host) shared() (lines []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for a := range h.lost {
		lines = append(lines, sharing[a.kind.name]...)
		if a.kind.name == "pods" {
			lines = append(lines, "link "+podsBr+" bridge")
		}
	}
	return lines
}

// wanted are lines, each an object of ours that has to be there.
func (h *host) wanted(leases []api.Lease) (lines []string) {
	count := map[string]int{}
	for _, a := range h.known() {
		count[a.kind.name]++
	}
	lines = append(lines, "table inet "+nftOurs, "link "+farDev+" vxlan",
		fmt.Sprint("pairs ", count["pods"]+count["far"]+count["ref"]))
	for name, links := range sharing {
		if count[name] > 0 {
			lines = append(lines, links...)
		}
	}
	if h.n == 3 && count["pods"] > 0 {
		lines = append(lines, "link "+podsBr+" bridge")
	}
	peers := map[string]bool{}
	for _, l := range leases {
		if l.Owner == nil || l.Owner.Name == h.Name || l.Pool != "pods" && l.Pool != "far" {
			continue
		}
		peer := h.x.hosts[l.Owner.Name[1]-'1']
		addr := cluster.Addr(peer.n - 1)[map[bool]int{true: 0, false: 1}[l.CIDR.Addr().Is4()]]
		if l.Pool == "pods" {
			lines = append(lines, fmt.Sprintf("route %s via %s dev eth1", l.CIDR, addr))
			continue
		}
		lines = append(lines, fmt.Sprintf("route %s dev %s", l.CIDR, farDev))
		peers[cluster.Addr(peer.n - 1)[0].String()] = true
	}
	for p := range peers {
		lines = append(lines, "fdb "+farDev+" "+p)
	}
	slices.Sort(lines)
	return lines
}

// found are such lines of what is there.
func (h *host) found() (lines []string, err error) {
	links, err := h.Links(h.x.t.Context())
	if err != nil {
		return nil, err
	}
	pairs := 0
	for _, l := range links {
		switch {
		case l.Name == "lo", l.Name == "eth1", l.Name == refBr, strings.HasPrefix(l.Name, "fv"), l.Name == "fbr0":
		case l.Kind == "macvlan":
			lines = append(lines, "link macvlan")
		case l.Kind == "veth" && !strings.HasPrefix(l.Name, "l"):
			pairs++
		default:
			lines = append(lines, "link "+l.Name+" "+l.Kind)
		}
	}
	lines = append(lines, fmt.Sprint("pairs ", pairs))
	for _, family := range []string{"-4", "-6"} {
		var routes []struct {
			Dst     string
			Gateway string
			Dev     string
		}
		if err := h.read(&routes, "ip", "-json", family, "route", "show", "proto", "141", "type", "unicast"); err != nil {
			return nil, err
		}
		for _, r := range routes {
			if dst, err := netip.ParsePrefix(r.Dst); err != nil || dst.IsSingleIP() {
				continue // to a container
			}
			if r.Dev == farDev {
				lines = append(lines, fmt.Sprintf("route %s dev %s", r.Dst, r.Dev))
			} else {
				lines = append(lines, fmt.Sprintf("route %s via %s dev %s", r.Dst, r.Gateway, r.Dev))
			}
		}
	}
	var fdb []struct{ Dst string }
	if slices.Contains(lines, "link "+farDev+" vxlan") {
		if err := h.read(&fdb, "bridge", "-json", "fdb", "show", "dev", farDev); err != nil {
			return nil, err
		}
	}
	for _, f := range fdb {
		if f.Dst != "" {
			lines = append(lines, "fdb "+farDev+" "+f.Dst)
		}
	}
	var tables struct {
		NFTables []struct {
			Table struct{ Family, Name string }
		}
	}
	if err := h.read(&tables, "nft", "-json", "list", "tables"); err != nil {
		return nil, err
	}
	for _, t := range tables.NFTables {
		if t.Table.Name == nftOurs {
			lines = append(lines, "table "+t.Table.Family+" "+t.Table.Name)
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// read runs a program on the host that prints JSON.
func (h *host) read(v any, argv ...string) error {
	out, err := h.Exec(h.x.t.Context(), argv...)
	if err == nil && strings.TrimSpace(out) != "" {
		err = json.Unmarshal([]byte(out), v)
	}
	return err
}
