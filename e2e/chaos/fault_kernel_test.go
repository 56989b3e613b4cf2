package chaos_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
)

// flushRules is what a firewall does that loads its rules: all others' go, too.
func flushRules(n *nemesis, h *host) error {
	h.others.mu.Lock()
	defer h.others.mu.Unlock()
	if n.choose.IntN(2) == 0 {
		_, _ = h.Exec(context.Background(), "nft", "delete", "table", "inet", nftOurs) // it may not be there
		return nil
	}
	return errors.Join(h.run([]string{"nft", "flush", "ruleset"}), h.others.rules(h))
}

// deleteRoutes leaves alone those to containers, which are their plugin's.
func deleteRoutes(n *nemesis, h *host) error {
	for _, family := range []string{"-4", "-6"} {
		out, err := h.Exec(context.Background(), "ip", family, "route", "show", "proto", "141", "type", "unicast")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			dst, _, _ := strings.Cut(line, " ")
			if p, err := netip.ParsePrefix(dst); err == nil && !p.IsSingleIP() && n.choose.IntN(3) > 0 {
				_, _ = h.Exec(context.Background(), "ip", family, "route", "del", dst, "proto", "141") // the agent may be faster
			}
		}
	}
	return nil
}

func deleteFDB(n *nemesis, h *host) error {
	dev := []string{farDev, segDev}[n.choose.IntN(2)]
	ctx := context.Background()
	out, err := h.Exec(ctx, "bridge", "fdb", "show", "dev", dev)
	if err != nil {
		return nil // there is no such device now
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if i := strings.Index(line, " dst "); i > 0 && n.choose.IntN(3) > 0 {
			_, _ = h.Exec(ctx, "bridge", "fdb", "del", f[0], "dev", dev, "dst", strings.Fields(line[i:])[1], "self")
		}
	}
	for _, family := range []string{"-4", "-6"} {
		_, _ = h.Exec(ctx, "ip", family, "neigh", "flush", "dev", dev, "nud", "permanent")
	}
	return nil
}

func deleteVXLAN(n *nemesis, h *host) error {
	_, _ = h.Exec(context.Background(), "ip", "link", "del", []string{farDev, segDev}[n.choose.IntN(2)]) // it may not be there
	return nil
}
