package chaos_test

import (
	"math/rand/v2"
	"regexp"
	"time"
)

// nemesis does one harm after the other until the round is over. Each is made
// good before the next one begins.
type nemesis struct {
	*campaign
	choose *rand.Rand
}

// fault is a kind of harm.
type fault struct {
	name, does string
	// must is what has to hold while it lasts or right after it, beside all that
	// holds at any time and at the end of a round.
	must string
	// weight is how often it is chosen, beside the others.
	weight int
	// do does it to a host, or to the cluster if that is nil, and undoes it. It
	// returns what should not be.
	do func(n *nemesis, h *host) error
}

// harm does faults of a table to a host.
func (n *nemesis) harm(h *host, table []fault) {
	var from []fault
	for _, f := range table {
		if regexp.MustCompile(*only).MatchString(f.name) {
			for range f.weight {
				from = append(from, f)
			}
		}
	}
	where := ""
	if h != nil {
		where = h.Name
	}
	for len(from) > 0 {
		n.rest(300*time.Millisecond, 3*time.Second)
		if n.over() || n.t.Failed() {
			return
		}
		f := from[n.choose.IntN(len(from))]
		n.note(where, "FAULT %s: %s", f.name, f.does)
		n.count(f.name)
		if err := f.do(n, h); err != nil {
			n.fail(where, "%s: %s: %v", f.name, f.must, err)
			return
		}
		n.note(where, "FAULT %s is over", f.name)
	}
}

func (n *nemesis) between(least, most time.Duration) time.Duration {
	return least + time.Duration(n.choose.Int64N(int64(most-least)))
}

// rest is between two deeds, and shorter when the round ends.
func (n *nemesis) rest(least, most time.Duration) {
	for end := time.Now().Add(n.between(least, most)); time.Now().Before(end) && !n.over(); {
		time.Sleep(20 * time.Millisecond)
	}
}

// within tries f until it has nothing to say, or the time is over.
func within(d time.Duration, f func() error) error {
	var err error
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}
