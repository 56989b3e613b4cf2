package network

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/pkg/nft"
)

const (
	// lookAgain is how often policies of others are looked for, and a missing nft.
	lookAgain = time.Minute
	// lookApart is the shortest time between two looks: rules of others may change
	// all the time.
	lookApart = 2 * time.Second
)

// rules keep the nftables table, as soon as there is nft.
type rules struct {
	log  *slog.Logger
	open func() (*nft.Reconciler, error)

	mu     sync.Mutex
	want   nft.Ruleset
	given  bool
	kept   *nft.Reconciler
	opened chan struct{} // closed with kept, anew for each
	err    error         // why nothing is kept
	tried  time.Time
	told   string
}

// apply has the table be what is wanted, and kept so.
func (r *rules) apply(ctx context.Context, want nft.Ruleset) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	same := r.given && reflect.DeepEqual(r.want, want)
	r.want, r.given = want, true
	if r.kept == nil {
		if time.Since(r.tried) < lookAgain && same {
			return r.err
		}
		r.tried = time.Now()
		kept, err := r.open()
		if err != nil {
			r.failLocked(explain(err))
			return r.err
		}
		r.kept, same = kept, false
		close(r.openedLocked())
	}
	if !same {
		_ = r.kept.Apply(ctx, want)
	}
	r.failLocked(r.kept.Err())
	return r.err
}

// explain says what to install where that is the reason.
func explain(err error) error {
	if _, missing := exec.LookPath("nft"); missing != nil {
		return fmt.Errorf("the program nft is missing: install the package nftables: %w", err)
	}
	return err
}

// failLocked notes what is wrong, and logs it once.
func (r *rules) failLocked(err error) {
	r.err = err
	now := text(err)
	if now == r.told {
		return
	}
	r.told = now
	if err != nil && !reflect.DeepEqual(r.want, nft.Ruleset{}) {
		r.log.Warn("no nftables rules: nothing is masqueraded, and a firewall may drop what is forwarded", "err", err)
	}
}

func (r *rules) openedLocked() chan struct{} {
	if r.opened == nil {
		r.opened = make(chan struct{})
	}
	return r.opened
}

// why is why the table is not as it has to be, at this moment.
func (r *rules) why() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept != nil {
		return r.kept.Err()
	}
	return r.err
}

// run keeps the table until ctx ends.
func (r *rules) run(ctx context.Context) {
	for {
		r.mu.Lock()
		opened := r.openedLocked()
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-opened:
		}
		err := r.kept.Run(ctx)
		r.mu.Lock()
		_ = r.kept.Close()
		r.kept, r.opened = nil, nil
		if ctx.Err() == nil {
			r.failLocked(err)
		}
		r.mu.Unlock()
	}
}

// look finds policies that drop what our rules accept.
func (t *Task) look(ctx context.Context) {
	told := make(map[string]bool)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	changed := make(chan struct{}, 1)
	watcher.Go(func() {
		// Where that is not to be heard, what is new is found in a minute.
		_ = t.firewall(ctx, func() { ring(changed) })
	})
	for ctx.Err() == nil {
		news := t.news.Next()
		var again <-chan time.Time
		if now := t.last(); now.plan != nil && len(now.plan.Forward) > 0 {
			t.lookOnce(ctx, told)
			again, news = time.After(lookAgain), nil
		}
		select {
		case <-ctx.Done():
		case <-news:
			continue
		case <-again:
		case <-changed:
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookApart):
		}
		rang(changed)
	}
}

func (t *Task) lookOnce(ctx context.Context, told map[string]bool) {
	drops, err := t.conf.Drops(ctx)
	fixed := false
	for chain := range told {
		there := slices.ContainsFunc(drops, func(d nft.Drop) bool { return d.Chain == chain })
		if !there && (chain != "" || err == nil) {
			delete(told, chain)
		}
	}
	for _, d := range drops {
		switch {
		case d.Passes:
			delete(told, d.Chain)
		case t.conf.FixForwardDrop:
			if ferr := d.Fix(ctx, t.conf.Netns); ferr != nil {
				t.log.Warn("a policy drops what is forwarded, and could not be told to let it pass", "chain", d.Chain, "err", ferr)
			} else {
				t.log.Info("let what our rules have marked pass a policy that drops", "chain", d.Chain, "command", strings.Join(d.Command, " "))
				fixed = true
			}
		case !told[d.Chain]:
			told[d.Chain] = true
			t.log.Warn(d.String(), "chain", d.Chain)
		}
	}
	if fixed {
		drops, err = t.conf.Drops(ctx)
	}
	if err != nil && ctx.Err() == nil && !told[""] {
		told[""] = true
		t.log.Warn("not all policies that may drop what is forwarded were looked at", "err", err)
	}
	t.mu.Lock()
	before := t.unopposed
	t.drops, t.unopposed = drops, len(drops) == 0 && err == nil
	changed := t.unopposed != before
	t.mu.Unlock()
	if changed {
		t.Stir()
	}
}
