package static

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nft/drop"
)

// rules are what nft reads to make the table, in one transaction; "" is none.
// They say the same as those of package nft for the agent's table.
type rules string

// rulesOf are those of all networks together.
func rulesOf(all map[string]*state) rules {
	if len(all) == 0 {
		return ""
	}
	sets := make(map[string][]string)
	add := func(set string, p netip.Prefix) {
		if p.Addr().Is4() {
			set += "4"
		} else {
			set += "6"
		}
		if text := p.Masked().String(); !slices.Contains(sets[set], text) {
			sets[set] = append(sets[set], text)
		}
	}
	for _, s := range inOrder(all, "") {
		for _, p := range s.Peers {
			add("forward", p.Prefix)
			add("node", netip.PrefixFrom(p.Via, p.Via.BitLen()))
		}
		for _, a := range s.Attachments {
			for _, p := range a.Prefixes {
				add("forward", p)
				if s.Masquerade {
					add("masquerade", p)
				}
			}
		}
	}
	var b strings.Builder
	for _, f := range []struct{ digit, ip, kind, groups string }{
		{"4", "ip", "ipv4_addr", "224.0.0.0/4"}, {"6", "ip6", "ipv6_addr", "ff00::/8"},
	} {
		for _, set := range []string{"forward", "masquerade", "node"} {
			list := sets[set+f.digit]
			slices.Sort(list)
			// Prefixes of two networks may overlap, which is a conflict otherwise.
			fmt.Fprintf(&b, "add set inet %s %s%s { type %s; flags interval; auto-merge; }\n", Table, set, f.digit, f.kind)
			if len(list) > 0 {
				fmt.Fprintf(&b, "add element inet %s %s%s { %s }\n", Table, set, f.digit, strings.Join(list, ", "))
			}
		}
		for _, way := range []string{"saddr", "daddr"} {
			fmt.Fprintf(&b, "add rule inet %s forward %s %s @forward%s meta mark set meta mark or %#x accept\n", Table, f.ip, way, f.digit, drop.Mark)
		}
		if len(sets["masquerade"+f.digit]) > 0 {
			// Only here: where there is such a chain, the kernel tracks the
			// connections of all that it forwards, which takes longer.
			b.WriteString(makeNAT)
			fmt.Fprintf(&b, "add rule inet %[1]s postrouting %[2]s saddr @masquerade%[3]s %[2]s daddr != @forward%[3]s %[2]s daddr != @node%[3]s %[2]s daddr != %[4]s masquerade fully-random\n",
				Table, f.ip, f.digit, f.groups)
		}
	}
	return rules(b.String())
}

const (
	makeTable  = "add table inet " + Table + "\n"
	clearTable = makeTable + "delete table inet " + Table + "\n"
	// Before those of others, who then see the mark.
	makeForward = makeTable + "add chain inet " + Table + " forward { type filter hook forward priority -10; }\n"
	makeNAT     = "add chain inet " + Table + " postrouting { type nat hook postrouting priority 100; }\n"
)

// script makes the table anew: no packet meets a part of it. Where the rules are a
// part of what is needed, what the sets have stays in them.
func (r rules) script(partial bool) string {
	switch {
	case partial && strings.Contains(string(r), makeNAT):
		return makeForward + makeNAT + "flush table inet " + Table + "\n" + string(r)
	case partial:
		return makeForward + "flush chain inet " + Table + " forward\n" + string(r)
	case r == "":
		return clearTable
	}
	return clearTable + makeForward + string(r)
}

// ErrNoProgram is returned where nft is needed, and missing.
var ErrNoProgram = errors.New("ipMasq: the program nft is missing; on Debian: apt-get install nftables")

func hasProgram() bool {
	_, err := exec.LookPath("nft")
	return err == nil
}

// applyRules makes the table, if it has changed or is not there. Without nft
// nothing is masqueraded, and what others drop stays dropped: that is an error
// where it was asked for.
func (h Host) applyRules(ctx context.Context, r rules, changed, partial, masquerade bool) error {
	if partial && r == "" {
		return nil
	}
	if !changed {
		if there, err := tableExists(); err != nil || there == (r != "") {
			return err
		}
	}
	if !hasProgram() {
		if masquerade {
			return ErrNoProgram
		}
		return nil
	}
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(r.script(partial))
	if out, err := cmd.CombinedOutput(); err != nil {
		err = fmt.Errorf("make nftables table inet %s: %w: %s", Table, err, strings.TrimSpace(string(out)))
		if !masquerade {
			fmt.Fprintln(h.Notes, err) // the kernel may have no nftables, and nobody asked for it
			return nil
		}
		return err
	}
	if r == "" {
		return nil
	}
	return h.tellDrops(ctx, h.FixDrop)
}

// tellDrops says who drops what is forwarded, or mends it.
func (h Host) tellDrops(ctx context.Context, fix bool) error {
	found, err := drop.Find(ctx, nil)
	if err != nil {
		if fix {
			return err
		}
		fmt.Fprintln(h.Notes, err)
	}
	for _, d := range found {
		switch {
		case d.Passes:
		case fix:
			if err := d.Fix(ctx, nil); err != nil {
				return fmt.Errorf("fixForwardDrop: %w", err)
			}
		default:
			fmt.Fprintf(h.Notes, "%s\n", d)
		}
	}
	return nil
}

// tableExists asks the kernel itself: to start nft takes as long as all the rest
// of an ADD.
func tableExists() (bool, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	defer unix.Close(s)
	if err := unix.Sendto(s, getTable(Table), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	return there(answer[:n])
}

// getTable is the message that asks for a table of family inet
// (linux/netfilter/nf_tables.h).
func getTable(name string) []byte {
	const nfgenmsg = 4
	attr := append([]byte(name), 0)
	size := unix.SizeofRtAttr + len(attr)
	attr = append(attr, make([]byte, -len(attr)&3)...)
	order := binary.NativeEndian
	msg := order.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+nfgenmsg+unix.SizeofRtAttr+len(attr)))
	msg = order.AppendUint16(msg, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE)
	msg = order.AppendUint16(msg, unix.NLM_F_REQUEST)
	msg = append(msg, make([]byte, 8)...) // sequence, port
	msg = append(msg, unix.NFPROTO_INET, 0, 0, 0)
	msg = order.AppendUint16(msg, uint16(size))
	msg = order.AppendUint16(msg, unix.NFTA_TABLE_NAME)
	return append(msg, attr...)
}

// there reads the answer.
func there(answer []byte) (bool, error) {
	if len(answer) < unix.SizeofNlMsghdr+4 {
		return false, errors.New("nftables: the kernel's answer is cut off")
	}
	if binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return true, nil
	}
	switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:]))); errno {
	case unix.ENOENT, unix.EINVAL, unix.EOPNOTSUPP: // no such table, or no nftables in the kernel
		return false, nil
	default:
		return false, fmt.Errorf("nftables: look for table %s: %w", Table, errno)
	}
}
