package history_test

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// outcome is what a caller knows of a call.
type outcome string

const (
	ok     outcome = "ok"
	failed outcome = "failed"
	// unknown: the plugin was killed, and what it asked for may come to pass.
	unknown outcome = "unknown"
)

// call is an ADD or a DEL.
type call struct {
	verb       string
	attachment string // names it in the whole cluster
	owner      string // sticky, or ""
	host       string
	begin, end time.Duration // since the history began, by a clock that only goes forward
	outcome    outcome
	addr       netip.Addr // of an ADD that is ok
	note       string     // what went wrong
}

func (c call) String() string {
	return fmt.Sprintf("%9.3f-%9.3f %s %s by %q on %s: %s %v %s", c.begin.Seconds(), c.end.Seconds(), c.verb, c.attachment, c.owner, c.host, c.outcome, c.addr, c.note)
}

// history is what callers have written down.
type history struct {
	began time.Time

	mu    sync.Mutex
	calls []call
}

func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) add(c call) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, c)
}

// step is a call to the model of one address.
type step struct {
	verb, attachment string
	// maybe: the address may as well stay as it is.
	maybe bool
}

// holding is the model: an address has one holder, "" for none. An ADD that
// returns it finds it free, or the caller's own. A DEL makes it free if the
// caller has it. What was not answered may have come about or not.
var holding = porcupine.NondeterministicModel{
	Init: func() []any { return []any{""} },
	Step: func(state, input, _ any) []any {
		holder, s := state.(string), input.(step)
		switch {
		case s.verb == "ADD" && (holder == "" || holder == s.attachment):
			return []any{s.attachment}
		case s.verb == "ADD":
			return nil
		case holder != s.attachment:
			return []any{holder}
		case s.maybe:
			return []any{holder, ""}
		}
		return []any{""}
	},
}

// judge says what in a history cannot be. The model is asked about each address
// on its own.
//
// An ADD without an answer is left out: it may hold any address, and whoever
// gets that one afterwards shows by it that it was none. A DEL without an
// answer may be done as late as the next DEL of the attachment that is ok: what
// comes after that must not be undone by the past.
func judge(calls []call, patience time.Duration) (findings []string) {
	byAddr := map[netip.Addr][]porcupine.Operation{}
	had := map[string]map[netip.Addr]bool{}
	for _, c := range calls {
		if c.verb == "ADD" && c.outcome == ok {
			if had[c.attachment] == nil {
				had[c.attachment] = map[netip.Addr]bool{}
			}
			had[c.attachment][c.addr] = true
			byAddr[c.addr] = append(byAddr[c.addr], operation(c, c.end))
		}
	}
	calls = slices.Clone(calls)
	slices.SortFunc(calls, func(a, b call) int { return cmp.Compare(b.begin, a.begin) })
	done := map[string]time.Duration{} // end of the next DEL that is ok
	for _, c := range calls {
		if c.verb != "DEL" {
			continue
		}
		end := c.end
		if c.outcome == ok {
			done[c.attachment] = end
		} else if next, known := done[c.attachment]; known {
			end = next
		} else {
			end = math.MaxInt64
		}
		for a := range had[c.attachment] {
			byAddr[a] = append(byAddr[a], operation(c, end))
		}
	}
	model := holding.ToModel()
	for _, a := range slices.SortedFunc(maps.Keys(byAddr), netip.Addr.Compare) {
		switch porcupine.CheckOperationsTimeout(model, byAddr[a], patience) {
		case porcupine.Illegal:
			findings = append(findings, fmt.Sprintf("%s has had two holders at a time:\n%s", a, about(calls, a, had)))
		case porcupine.Unknown:
			findings = append(findings, fmt.Sprintf("%s: there is no verdict after %s", a, patience))
		}
	}
	return findings
}

func operation(c call, end time.Duration) porcupine.Operation {
	return porcupine.Operation{
		Input: step{c.verb, c.attachment, c.outcome != ok},
		Call:  int64(c.begin), Return: int64(end),
	}
}

// about lists what happened to an address around the first time that it
// certainly had two holders, or all of it.
func about(calls []call, a netip.Addr, had map[string]map[netip.Addr]bool) string {
	var of []call
	for _, c := range calls {
		if had[c.attachment][a] {
			of = append(of, c)
		}
	}
	slices.SortFunc(of, func(a, b call) int { return cmp.Compare(a.begin, b.begin) })
	first, last := 0, len(of)
	holder, since := "", 0
	for i, c := range of {
		switch {
		case c.verb == "DEL" && c.attachment == holder:
			holder = ""
		case c.verb == "ADD" && c.addr == a && (holder == "" || holder == c.attachment):
			holder, since = c.attachment, i
		case c.verb == "ADD" && c.addr == a && last == len(of):
			first, last = max(0, since-5), min(len(of), i+6)
		}
	}
	var lines []string
	for _, c := range of[first:last] {
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n")
}

// strictly says which addresses of a strictly sticky pool went from one owner
// to another, which no ADD may bring about while they are kept.
func strictly(calls []call, pool netip.Prefix) (findings []string) {
	owner := map[netip.Addr]call{}
	for _, c := range calls {
		if c.verb != "ADD" || c.outcome != ok || !pool.Contains(c.addr) {
			continue
		}
		if first, known := owner[c.addr]; known && first.owner != c.owner {
			findings = append(findings, fmt.Sprintf("%s is kept for an owner:\n%s\n%s", c.addr, first, c))
		} else if !known {
			owner[c.addr] = c
		}
	}
	return findings
}

// loyal counts the ADDs of sticky owners, and how many of them gave another
// address than the one before.
func loyal(calls []call) (again, moved int) {
	last := map[string]netip.Addr{}
	for _, c := range calls {
		if c.verb != "ADD" || c.outcome != ok || c.owner == "" {
			continue
		}
		if a, known := last[c.owner]; known && a == c.addr {
			again++
		} else if known {
			moved++
		}
		last[c.owner] = c.addr
	}
	return again, moved
}
