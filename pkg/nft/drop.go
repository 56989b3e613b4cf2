package nft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/nlsock"
)

// Drop is a policy of somebody else that drops what is forwarded, whatever our
// table accepts.
type Drop struct {
	// Chain is where, in words: "ip filter FORWARD (nft)".
	Chain string
	// Command lets marked packets pass; it is to be run once, and again after the
	// chain is made anew.
	Command []string
	// Passes: marked packets pass already.
	Passes bool
}

// String explains the drop, and names the command.
func (d Drop) String() string {
	if d.Passes {
		return fmt.Sprintf("%s drops by default, and lets marked packets pass", d.Chain)
	}
	return fmt.Sprintf("%s drops what our table accepts; run: %s", d.Chain, strings.Join(d.Command, " "))
}

// Drops finds the policies that are in the way, in the namespace n, or, if it is
// nil, in that of the calling thread: base chains of nftables, among them those
// that Docker makes through iptables-nft, and FORWARD of legacy iptables, which
// nft does not show. It leaves out rules that drop, which may have reasons.
func Drops(ctx context.Context, n *netns.NS) (found []Drop, err error) {
	find := func() error {
		modern, err := modernDrops(ctx)
		legacy, lerr := legacyDrops(ctx)
		found = append(modern, legacy...)
		return errors.Join(err, lerr)
	}
	if n != nil {
		err = n.Do(find)
	} else {
		err = find()
	}
	if err != nil {
		err = fmt.Errorf("find what drops: %w", err)
	}
	return found, err
}

// WatchDrops calls heard whenever Drops may find others than before, until ctx
// ends. Of legacy iptables nothing is heard.
func WatchDrops(ctx context.Context, n *netns.NS, heard func()) error {
	fd := -1
	if n != nil {
		fd = n.Fd()
	}
	w, err := nlsock.Watch(fd, unix.NETLINK_NETFILTER, groupNFTables)
	if err != nil {
		return err
	}
	return w.Listen(ctx, func(m nlsock.Message) {
		switch int(m.Type) - unix.NFNL_SUBSYS_NFTABLES<<8 {
		case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
			if !concerns(m) {
				heard()
			}
		}
	}, heard)
}

// Fix runs the command, unless marked packets pass already.
func (d Drop) Fix(ctx context.Context, n *netns.NS) error {
	if d.Passes {
		return nil
	}
	fix := func() error {
		_, err := output(ctx, d.Command...)
		return err
	}
	if n != nil {
		return n.Do(fix)
	}
	return fix()
}

func modernDrops(ctx context.Context) (found []Drop, err error) {
	out, err := output(ctx, "nft", "--json", "list", "chains")
	if err != nil {
		return nil, err
	}
	chains, err := parseChains([]byte(out))
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if !c.drops() {
			continue
		}
		d := Drop{Chain: fmt.Sprintf("%s %s %s (nft)", c.Family, c.Table, c.Name)}
		if program := iptablesOf(c); program != "" {
			docker := slices.ContainsFunc(chains, func(o baseChain) bool {
				return o.Family == c.Family && o.Table == c.Table && o.Name == dockerUser
			})
			d.letPass(ctx, program, docker)
		} else {
			where := []string{c.Family, c.Table, c.Name}
			d.Command = slices.Concat([]string{"nft", "insert", "rule"}, where, []string{"meta", "mark", "and", fmt.Sprintf("%#x", Mark), "!=", "0", "accept"})
			rules, err := output(ctx, slices.Concat([]string{"nft", "list", "chain"}, where)...)
			if err != nil {
				return found, err
			}
			d.Passes = strings.Contains(rules, fmt.Sprintf("meta mark & 0x%08x != 0x00000000 accept", Mark))
		}
		found = append(found, d)
	}
	return found, nil
}

// baseChain is what matters of a chain that nft lists as JSON
// (libnftables-json(5)).
type baseChain struct {
	Family, Table, Name, Hook, Policy string
}

func parseChains(listing []byte) (out []baseChain, err error) {
	var list struct {
		Objects []struct{ Chain *baseChain } `json:"nftables"`
	}
	if err := json.Unmarshal(listing, &list); err != nil {
		return nil, fmt.Errorf("nft list chains: %w", err)
	}
	for _, o := range list.Objects {
		if o.Chain != nil {
			out = append(out, *o.Chain)
		}
	}
	return out, nil
}

func (c baseChain) drops() bool {
	routed := c.Family == "ip" || c.Family == "ip6" || c.Family == "inet"
	return routed && c.Hook == "forward" && c.Policy == "drop"
}

// iptablesOf is the program that speaks for a chain; "" if there is none.
func iptablesOf(c baseChain) string {
	program := map[string]string{"ip": "iptables-nft", "ip6": "ip6tables-nft"}[c.Family]
	if _, err := exec.LookPath(program); err != nil || c.Table != "filter" || c.Name != "FORWARD" {
		return ""
	}
	return program
}

// dockerUser is the chain that Docker leaves to its users, and visits before its
// own.
const dockerUser = "DOCKER-USER"

// legacyDrops asks legacy iptables where it is in use, and only there: the
// question alone makes the kernel load its tables.
func legacyDrops(ctx context.Context) (found []Drop, err error) {
	for _, f := range []struct{ tables, program string }{
		{"/proc/thread-self/net/ip_tables_names", "iptables-legacy"},
		{"/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"},
	} {
		loaded, rerr := os.ReadFile(f.tables)
		if rerr != nil || !slices.Contains(strings.Fields(string(loaded)), "filter") {
			continue // the kernel has no such thing, or nobody has asked for it
		}
		rules, rerr := output(ctx, f.program, "--wait", "--list-rules")
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		lines := strings.Split(rules, "\n")
		if !slices.Contains(lines, "-P FORWARD DROP") {
			continue
		}
		d := Drop{Chain: fmt.Sprintf("filter FORWARD (%s)", f.program)}
		d.letPass(ctx, f.program, slices.Contains(lines, "-N "+dockerUser))
		found = append(found, d)
	}
	return found, err
}

// letPass finds the command of a program of iptables, and whether it has been
// run.
func (d *Drop) letPass(ctx context.Context, program string, docker bool) {
	chain := "FORWARD"
	if docker {
		chain = dockerUser
	}
	rule := []string{chain, "-m", "mark", "--mark", fmt.Sprintf("%#x/%#x", Mark, Mark), "-j", "ACCEPT"}
	d.Command = slices.Concat([]string{program, "-I"}, rule)
	_, err := output(ctx, slices.Concat([]string{program, "-C"}, rule)...)
	d.Passes = err == nil
}

// output runs a program and returns what it prints.
func output(ctx context.Context, words ...string) (string, error) {
	var said strings.Builder
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}
