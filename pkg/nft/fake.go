package nft

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"sigs.k8s.io/knftables"

	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// Fake is a kernel with the table, without a kernel, for tests: knftables' own,
// which refuses what the kernel refuses, and others who flush it and spoil it.
// It is safe for concurrent use.
type Fake struct {
	reconcile.Herald
	tables
	nft *knftables.Fake

	mu   sync.Mutex
	fail error
}

var _ Kernel = (*Fake)(nil)

// NewFake has no table.
func NewFake() *Fake {
	nft := knftables.NewFake(family, name)
	return &Fake{tables: tables{nft}, nft: nft}
}

// List implements Kernel.
func (f *Fake) List(ctx context.Context) ([]table, error) {
	if err := f.failure(ctx); err != nil {
		return nil, fmt.Errorf("list table %s: %w", name, err)
	}
	all, err := f.nft.ListAll(ctx)
	if knftables.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list table %s: %w", name, err)
	}
	c := content{chains: make(map[string][]string), sets: make(map[string][]string)}
	for kind, names := range all {
		for _, n := range names {
			switch kind {
			case "chain":
				c.chains[n] = nil
			case "set":
				elements, err := f.nft.ListElements(ctx, "set", n)
				if err != nil {
					return nil, fmt.Errorf("list set %s: %w", n, err)
				}
				c.sets[n] = nil
				for _, e := range elements {
					c.sets[n] = append(c.sets[n], fmt.Sprint(e.Key[0]))
				}
			case "table", "rule":
			default: // none of ours
				c.sets[kind+"/"+n] = nil
			}
		}
	}
	rules, err := f.nft.ListRules(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list rules of table %s: %w", name, err)
	}
	for _, r := range rules {
		comment := "not ours"
		if r.Comment != nil {
			comment = *r.Comment
		}
		c.chains[r.Chain] = append(c.chains[r.Chain], comment)
	}
	return []table{c.table()}, nil
}

// Change implements Kernel.
func (f *Fake) Change(ctx context.Context, changes []reconcile.Change[table]) ([]error, error) {
	if err := f.failure(ctx); err != nil {
		return nil, fmt.Errorf("set table %s: %w", name, err)
	}
	return f.tables.Change(ctx, changes)
}

func (f *Fake) failure(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(ctx.Err(), f.fail)
}

// Close implements Kernel.
func (f *Fake) Close() error { return nil }

// Fail makes List and Change fail with err; nil ends that.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Flush does what `nft flush ruleset` does.
func (f *Fake) Flush() error {
	return f.Do(func(tx *knftables.Transaction) {
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
	})
}

// Do changes the table as others do.
func (f *Fake) Do(change func(*knftables.Transaction)) error {
	tx := f.nft.NewTransaction()
	change(tx)
	if err := f.nft.Run(context.Background(), tx); err != nil {
		return err
	}
	f.Tell(reconcile.Ours)
	return nil
}

// String is the table as a file that nft reads; "" if there is none.
func (f *Fake) String() string { return f.nft.Dump() }
