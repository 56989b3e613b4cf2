package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// levels are the numbers of addresses held, of a /16, when an IPAM plugin is
// measured alone.
var levels = []int{0, 1000, 10000, 50000, 60000}

// held measures the IPAM plugins alone, as libcni would call them.
func (b *bench) held(ctx context.Context) error {
	var variants []variant
	for _, level := range levels {
		for _, plugin := range []string{heldHostLocal, heldOurs} {
			v, err := b.filled(ctx, plugin, level)
			if err != nil {
				return fmt.Errorf("%s with %d held: %w", plugin, level, err)
			}
			variants = append(variants, v)
		}
	}
	return b.alternate(ctx, sectionHeld, max(1, b.rounds/6), variants)
}

// filled is an IPAM plugin with its first addresses held already.
func (b *bench) filled(ctx context.Context, plugin string, level int) (variant, error) {
	name := heldName(plugin, level)
	dir := filepath.Join(b.scratch, "held", name)
	data := filepath.Join(dir, "data")
	section := ipv4.ipam(plugin)
	section["dataDir"] = data
	conf := object{"type": plugin, "ipam": section}
	binaries, fill := referenceDir(b.scratch), fillHostLocal
	if plugin == heldOurs {
		binaries, fill = b.bin, fillLedger
		conf["dataDir"], conf["runDir"] = data, filepath.Join("/run/held", name)
		delete(section, "dataDir")
	}
	v, err := newVariant(name, binaries, dir, conf)
	if err != nil {
		return variant{}, err
	}
	if plugin == heldHostLocal && level >= 10000 {
		v.every = level / 5000 // seconds for each
	}
	return v, fill(ctx, conf, level)
}

// heldName is the variant of an IPAM plugin with so many addresses held.
func heldName(plugin string, level int) string { return fmt.Sprintf("%s, %d held", plugin, level) }

// fillHostLocal writes the files that host-local keeps: one for each address,
// which names its holder, and the last address given out.
func fillHostLocal(_ context.Context, conf object, n int) error {
	dir := filepath.Join(conf["ipam"].(object)["dataDir"].(string), network)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	last := netip.MustParseAddr(ipv4.gateway)
	for i := range n {
		last = last.Next()
		holder := fmt.Sprintf("%s\r\neth0", heldContainer(i))
		if err := os.WriteFile(filepath.Join(dir, last.String()), []byte(holder), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "last_reserved_ip.0"), []byte(last.String()), 0o600)
}

// fillLedger writes the ledger as if it were rebuilt from running containers,
// in one transaction.
func fillLedger(ctx context.Context, conf object, n int) error {
	if n == 0 {
		return nil
	}
	subnet := netip.MustParsePrefix(ipv4.subnet)
	gateway := netip.MustParseAddr(ipv4.gateway)
	found := make([]ledger.Found, n)
	last := gateway
	for i := range found {
		last = last.Next()
		found[i] = ledger.Found{
			Attachment: ipam.Attachment{Network: network, ContainerID: heldContainer(i), IfName: "eth0"},
			Pool:       network,
			Addresses:  []ipam.Address{{Prefix: netip.PrefixFrom(last, subnet.Bits()), Gateway: gateway}},
		}
	}
	return ledger.Rebuild(ctx, ledger.Options{
		DataDir: conf["dataDir"].(string), RunDir: conf["runDir"].(string),
	}, found)
}

func heldContainer(i int) string { return fmt.Sprintf("held-%06d", i) }
