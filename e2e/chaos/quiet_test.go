package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

const (
	// soon is how long it may take until all is as it has to be, when the faults
	// are undone.
	soon = time.Minute
	// swept is how long it takes until leaks are looked for twice.
	swept = 150 * time.Second
)

// quiet: all faults are undone, and all is as it has to be.
func (x *campaign) quiet(round int) {
	x.note("", "quiet after round %d", round)
	for _, h := range x.hosts {
		h.Signal(syscall.SIGCONT)
		h.Start()
	}
	x.c.Ready(soon)
	x.note("", "all agents are ready")
	var all sync.WaitGroup
	for i, h := range x.hosts {
		all.Go(func() {
			choose := x.random(uint64(200+i), round)
			for _, a := range h.known() {
				if a.broken() {
					a.end(choose, true)
				}
			}
			// A DEL that nobody could tell who else there is leaves what they share.
			h.collectAll(true)
			h.expect("ledger", func() error { return h.books(true) })
			h.expect("kernel", h.kernel)
			for _, a := range h.known() {
				h.expect("CHECK of "+a.String(), func() error { _, err := a.check(choose, true); return err })
			}
			h.probe(fmt.Sprintf("pr%d", round))
		})
	}
	all.Wait()
	if !x.t.Failed() {
		x.reach()
	}
	x.note("", "quiet is over")
}

// expect: f has nothing to say soon.
func (h *host) expect(what string, f func() error) {
	if h.x.t.Failed() {
		return
	}
	began, first := time.Now(), error(nil)
	err := within(soon, func() error {
		err := f()
		if first == nil {
			first = err
		}
		return err
	})
	if err != nil {
		h.x.fail(h.Name, "%s, %s after all faults were undone: %v", what, soon, err)
		return
	}
	if took := time.Since(began); took > 2*time.Second {
		h.x.note(h.Name, "%s is right after %s: %v", what, took.Round(time.Millisecond), first)
	}
}

// books: what the ledger has on record is what is attached. Containers that were
// lost may be on record, as long as nobody has looked for leaks.
func (h *host) books(leaks bool) error {
	recs, err := h.API.Addresses(h.x.t.Context(), api.AddressFilter{State: ipam.Held})
	if err != nil {
		return err
	}
	got, want := map[string][]string{}, map[string][]string{}
	for _, r := range recs {
		key := r.Attachment.Network + " " + r.Attachment.ContainerID
		got[key] = append(got[key], r.Address.Addr().String())
	}
	atts, err := h.API.Attachments(h.x.t.Context(), "")
	if err != nil {
		return err
	}
	for _, r := range atts {
		network, _, _ := strings.Cut(r.Attachment.Network, "/") // of a part of a chain
		key := network + " " + r.Attachment.ContainerID
		if got[key] == nil {
			got[key] = []string{}
		}
	}
	for _, a := range h.known() {
		var list []string
		for _, addr := range a.addrs {
			list = append(list, addr.String())
		}
		want[a.kind.name+" "+a.rt.ContainerID] = list
	}
	h.mu.Lock()
	for a := range h.lost {
		if leaks {
			delete(got, a.kind.name+" "+a.rt.ContainerID)
		}
	}
	h.mu.Unlock()
	for _, m := range []map[string][]string{got, want} {
		for _, list := range m {
			slices.Sort(list)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("what is held (-attached +ledger):\n%s%s", diff, h.history(diff))
	}
	return nil
}

// history is what the journal has about the containers that a text names.
func (h *host) history(text string) string {
	var words []string
	for _, f := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '"' || r == '\n' }) {
		if name, is := strings.CutPrefix(f, h.ID+"-"); is {
			words = append(words, "/"+name+" ")
		}
	}
	if len(words) == 0 {
		return ""
	}
	return h.x.of(40, words...)
}

// probe: each network can be used, at once or, where that asks other hosts, soon.
func (h *host) probe(name string) {
	choose := h.x.random(300, h.n)
	for i, k := range kinds {
		if h.x.t.Failed() {
			return
		}
		a, err := h.attachment(k, fmt.Sprintf("%sk%d", name, i), choose)
		if err != nil {
			h.x.fail(h.Name, "%v", err)
			return
		}
		h.expect("ADD "+a.String(), func() error { _, err := a.add(choose, true); return err })
		if !h.x.t.Failed() {
			h.expect("CHECK "+a.String(), func() error { _, err := a.check(choose, true); return err })
		}
		a.end(choose, true)
	}
}

// reach: containers of a network reach each other from host to host.
func (x *campaign) reach() {
	var errs []error
	for _, k := range kinds {
		if k.local && k.name != "near" {
			continue
		}
		var ends []*attachment
		for _, h := range x.hosts {
			all := slices.DeleteFunc(h.known(), func(a *attachment) bool { return a.kind != k })
			if len(all) > 0 {
				ends = append(ends, all[0])
			}
			if k.name == "near" && len(all) > 0 {
				errs = append(errs, x.answers(h.ID, h.Ping, all[0]))
			}
		}
		for i, a := range ends {
			b := ends[(i+1)%len(ends)]
			if a != b {
				errs = append(errs, x.answers(a.String(), a.box.Ping, b))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		x.fail("", "%v", err)
	}
}

func (x *campaign) answers(from string, ping func(context.Context, netip.Addr, time.Duration) (bool, error), to *attachment) error {
	for _, addr := range to.addrs {
		err := within(15*time.Second, func() error {
			if answer, err := ping(x.t.Context(), addr, time.Second); err != nil || !answer {
				return fmt.Errorf("%s does not reach %s: %w", from, to, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		x.count("pings")
	}
	return nil
}
