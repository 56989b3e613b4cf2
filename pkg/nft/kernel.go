package nft

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Kernel is where the table is.
type Kernel = reconcile.Kernel[table]

// tables writes the table through nft, or a fake of it.
type tables struct{ nft knftables.Interface }

// Change writes the table in one transaction.
func (t tables) Change(ctx context.Context, changes []reconcile.Change[table]) (verdicts []error, err error) {
	for _, c := range changes {
		verdicts = append(verdicts, t.change(ctx, c))
	}
	return verdicts, nil
}

func (t tables) change(ctx context.Context, c reconcile.Change[table]) error {
	if c.Verb == reconcile.Delete {
		tx := t.nft.NewTransaction()
		tx.Delete(&knftables.Table{})
		if err := t.nft.Run(ctx, tx); err != nil && !knftables.IsNotFound(err) {
			return fmt.Errorf("delete table %s: %w", name, err)
		}
		return nil
	}
	frame, want := c.New.split()
	if c.Verb == reconcile.Replace {
		if there, have := c.Old.split(); there == frame {
			tx := t.nft.NewTransaction()
			for _, e := range sorted(have, want) {
				tx.Delete(e)
			}
			for _, e := range sorted(want, have) {
				tx.Add(e)
			}
			if t.nft.Run(ctx, tx) == nil {
				return nil
			}
			// The table has changed meanwhile, or the kernel holds a prefix for one
			// that is in the way still. What is new is taken whole.
		}
	}
	tx := t.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	for _, s := range sets() {
		if c.New.has("set", s.Name) {
			tx.Add(s)
		}
	}
	for _, e := range sorted(want, nil) {
		tx.Add(e)
	}
	for _, ch := range chains() {
		if !c.New.has("chain", ch.name) {
			continue
		}
		tx.Add(&knftables.Chain{Name: ch.name, Type: &ch.kind, Hook: &ch.hook, Priority: &ch.priority})
		for _, r := range ch.rules {
			tx.Add(&knftables.Rule{Chain: ch.name, Rule: r.text, Comment: knftables.PtrTo(r.mark())})
		}
	}
	if err := t.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("set table %s: %w", name, err)
	}
	return nil
}

// sorted are the elements that are in a and not in b.
func sorted(a, b map[element]bool) (out []*knftables.Element) {
	only := maps.Clone(a)
	maps.DeleteFunc(only, func(e element, _ bool) bool { return b[e] })
	for _, e := range slices.SortedFunc(maps.Keys(only), element.compare) {
		out = append(out, &knftables.Element{Set: e.set, Key: []string{e.value}})
	}
	return out
}

// host is the kernel that nft talks to, in a namespace.
type host struct {
	tables
	ns *netns.NS // nil: that of the calling thread
}

var _ Kernel = (*host)(nil)

func openHost(ns *netns.NS) (*host, error) {
	h := &host{ns: ns}
	err := h.do(func() (err error) {
		h.nft, err = knftables.New(family, name)
		return err
	})
	return h, err
}

// do runs f where nft finds the namespace, which it gets from the thread that
// starts it.
func (h *host) do(f func() error) error {
	if h.ns == nil {
		return f()
	}
	return h.ns.Do(f)
}

// List implements Kernel.
func (h *host) List(ctx context.Context) (all []table, err error) {
	err = h.do(func() (err error) {
		all, err = list(ctx)
		return err
	})
	return all, err
}

// Change implements Kernel.
func (h *host) Change(ctx context.Context, changes []reconcile.Change[table]) (verdicts []error, err error) {
	err = h.do(func() (err error) {
		verdicts, err = h.tables.Change(ctx, changes)
		return err
	})
	return verdicts, err
}

// groupNFTables is NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
const groupNFTables = 7

// Watch implements Kernel. It hears of what nft does for us too.
func (h *host) Watch(ctx context.Context, heard func(reconcile.News)) error {
	fd := -1
	if h.ns != nil {
		fd = h.ns.Fd()
	}
	w, err := nlsock.Watch(fd, unix.NETLINK_NETFILTER, groupNFTables)
	if err != nil {
		return err
	}
	heard(reconcile.Around)
	return w.Listen(ctx, func(m nlsock.Message) {
		if concerns(m) {
			heard(reconcile.Ours)
		}
	}, func() { heard(reconcile.Around) })
}

// WatchDrops calls heard whenever package drop may find others than before, until
// ctx ends. Of legacy iptables nothing is heard.
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

// concerns reports whether a message is about our table. All of them name a
// table in attribute 1 (linux/netfilter/nf_tables.h), but that a transaction is
// over, which others' are too.
func concerns(m nlsock.Message) bool {
	const sizeofNfgenmsg = 4
	if m.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		return false
	}
	if len(m.Body) < sizeofNfgenmsg {
		return true
	}
	attrs, err := nlsock.Attributes(m.Body[sizeofNfgenmsg:])
	return err != nil || slices.ContainsFunc(attrs, func(a nlsock.Attribute) bool {
		return a.Kind == unix.NFTA_TABLE_NAME && unix.ByteSliceToString(a.Value) == name
	})
}

// Close implements Kernel.
func (h *host) Close() error { return nil }
