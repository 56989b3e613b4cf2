package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// underlayctl is a command line on a host's ledger.
func (d *demo) underlayctl(h *lab.Host, args ...string) []string {
	return append([]string{filepath.Join(d.bin, "underlayctl")}, append(args, "--data-dir", h.DataDir, "--run-dir", h.RunDir)...)
}

// printLedgers shows what each host's ledger holds.
func (d *demo) printLedgers(ctx context.Context) error {
	for _, h := range d.hosts {
		out, err := h.Exec(ctx, d.underlayctl(h, "address", "list")...)
		if err != nil {
			return err
		}
		d.title("The ledger of %s (underlayctl address list)", h.Name)
		for line := range strings.Lines(out) {
			fmt.Fprint(d.out, "  ", line)
		}
	}
	return nil
}

// held counts the addresses that are in use, by a host's ledger. Those that
// cool down after their release are not.
func (d *demo) held(ctx context.Context, h *lab.Host) (int, error) {
	out, err := h.Exec(ctx, d.underlayctl(h, "address", "list", "--state", "held", "-o", "json")...)
	if err != nil {
		return 0, err
	}
	var records []json.RawMessage
	if err := json.Unmarshal([]byte(out), &records); err != nil {
		return 0, fmt.Errorf("read the addresses of %s: %w", h.Name, err)
	}
	return len(records), nil
}

// tearDown detaches the containers and shows that nothing is left of them.
func (d *demo) tearDown(ctx context.Context) error {
	links := 0
	for _, s := range slices.Concat(d.stations, d.pods, d.wide) {
		if s.container == nil {
			continue
		}
		if err := s.host.CNI(d.bin).Del(ctx, s.conf, s.container.Runtime()); err != nil {
			return fmt.Errorf("detach %s on %s: %w", s.name, s.host.Name, err)
		}
		left, err := s.Links(ctx)
		if err != nil {
			return err
		}
		links += len(left) - 1 // lo
	}
	held := 0
	for _, h := range d.hosts {
		n, err := d.held(ctx, h)
		if err != nil {
			return err
		}
		held += n
	}
	d.title("All containers detached (DEL): %d links left, %d addresses held.", links, held)
	if links+held > 0 {
		return fmt.Errorf("left behind: %d links, %d addresses", links, held)
	}
	return nil
}

// printHints says how to look around and how to remove what is kept.
func (d *demo) printHints() {
	first := slices.IndexFunc(d.stations, func(s station) bool { return s.container != nil })
	c, other := d.stations[first], d.stations[len(d.stations)-1]
	d.title("Everything is left up. Look around:")
	fmt.Fprintf(d.out, "  ip netns exec %s ping %s\n", c.ID, other.addrs[0])
	fmt.Fprintf(d.out, "  ip -n %s -details addr show eth0\n", c.ID)
	fmt.Fprintf(d.out, "  ip netns exec %s ip neigh\n", c.host.ID)
	fmt.Fprintf(d.out, "  %s\n", strings.Join(d.underlayctl(c.host, "attachment", "list"), " "))
	d.title("Remove it all:")
	fmt.Fprintln(d.out, "  make demo-clean")
}
