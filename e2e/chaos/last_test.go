package chaos_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// last is what holds at the end of all.
func (x *campaign) last() {
	x.note("", "the end")
	x.hosts[0].collectAll(false)
	for _, h := range x.hosts {
		if err := within(swept, func() error { return h.books(false) }); err != nil {
			x.fail(h.Name, "leaks are not released: %v", err)
		}
	}
	for _, h := range x.hosts {
		h.collectAll(false) // what they shared
		h.mu.Lock()
		clear(h.lost)
		h.mu.Unlock()
	}
	x.note("", "no leak is left")
	choose := x.random(3, 0)
	for _, h := range x.hosts {
		for _, a := range h.known() {
			if choose.IntN(2) == 0 {
				a.end(choose, true)
			}
		}
	}
	x.c.Settle()
	x.c.Agree()
	x.note("", "registry and ledgers agree")
	x.take()
	for _, h := range x.hosts {
		h.expect("ledger", func() error { return h.books(false) })
		h.expect("kernel", h.kernel)
		for _, a := range h.known() {
			h.expect("CHECK of "+a.String(), func() error { _, err := a.check(choose, true); return err })
			a.end(choose, true)
		}
		h.expect("empty ledger", func() error { return h.books(false) })
		h.expect("kernel", h.kernel)
		h.others.look(h)
		h.said()
	}
}

// never is what no agent says: that it has fallen into a panic, or has given out
// what others have.
var never = []string{"panic:", "fatal error:", "event=addressLost", "event=nodeRenewed"}

func (h *host) said() {
	text, err := os.ReadFile(h.Log())
	if err != nil {
		h.x.fail(h.Name, "%v", err)
	}
	for line := range strings.Lines(string(text)) {
		if slices.ContainsFunc(never, func(what string) bool { return strings.Contains(line, what) }) {
			h.x.fail(h.Name, "its agent says: %s", line)
		}
	}
}

func (h *host) collectAll(lost bool) {
	for _, k := range kinds {
		h.collect(k, lost)
	}
}

// take has each address of the pool that is scarce given out, from the hosts in
// turn, and no more.
func (x *campaign) take() {
	lan, taken := kinds[0], map[netip.Addr]bool{}
	for _, h := range x.hosts {
		for _, a := range h.known() {
			if a.kind == lan {
				taken[a.addrs[0]] = true
			}
		}
	}
	choose := x.random(4, 0)
	for i := 0; i <= lanSize && !x.t.Failed(); i++ {
		h := x.hosts[i%len(x.hosts)]
		a, err := h.attachment(lan, fmt.Sprintf("f%d", i), choose)
		if err != nil {
			x.fail(h.Name, "%v", err)
			return
		}
		o, err := outcome(""), error(nil)
		for end := time.Now().Add(soon); ; time.Sleep(100 * time.Millisecond) {
			if o, err = a.add(choose, true); o == ok || len(taken) == lanSize || time.Now().After(end) {
				break
			}
		}
		switch {
		case o != ok:
			a.end(choose, true)
			if len(taken) < lanSize {
				x.fail(h.Name, "of %d addresses %d can be had: %v", lanSize, len(taken), err)
			} else if !strings.Contains(err.Error(), "usable") {
				x.fail(h.Name, "ADD from a pool that is used up: %v", err)
			}
			x.note("", "%d addresses are given out", len(taken))
			return
		case taken[a.addrs[0]]:
			x.fail(h.Name, "%s is given out twice", a.addrs[0])
		}
		taken[a.addrs[0]] = true
	}
}
