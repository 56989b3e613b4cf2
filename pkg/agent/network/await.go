package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

// attachPatience is how long an ADD waits for the first sync of its network.
const attachPatience = 2 * time.Second

// Await waits until the routes and rules are there that an attachment uses, or
// says why they are not.
func (t *Task) Await(ctx context.Context, u ipam.Uses) error {
	if t.conf.Networks != nil && !slices.Contains(t.conf.Networks, u.Network) {
		return &ipam.FieldError{Place: "network", Msg: fmt.Sprintf(`this node does not follow network %q; add it to "networks" in underlayd.json`, u.Network)}
	}
	ctx, cancel := context.WithTimeout(ctx, attachPatience)
	defer cancel()
	if u.Masquerade {
		t.mu.Lock()
		_, armed := t.armed[u.Network]
		t.armed[u.Network] = time.Now().Add(armedFor)
		t.mu.Unlock()
		if !armed {
			t.Stir() // what it sends first is masqueraded too
		}
	}
	for {
		news := t.news.Next()
		why := t.lacks(u)
		if why == nil {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return why
		}
	}
}

// lacks says what is not there yet.
func (t *Task) lacks(u ipam.Uses) error {
	t.mu.Lock()
	now, before := t.now, t.earlier
	t.mu.Unlock()
	if now.snapshot == nil {
		if !before.lacks(u.Network, u.Masquerade) {
			return nil
		}
		why := now.away
		if why == nil {
			why = errors.New("the registry has not been read yet")
		}
		return notYet(u.Network, errors.Join(why, now.err))
	}
	n, known := now.snapshot.Network(u.Network)
	switch {
	case !known:
		return &ipam.FieldError{Place: "network", Code: ipam.CodeTryAgainLater,
			Msg: fmt.Sprintf("the registry knows no network %q; see: underlayctl network list", u.Network)}
	case t.lacking(n) != "":
		return notYet(u.Network, errors.New(t.lacking(n)))
	case !now.synced[u.Network]:
		return notYet(u.Network, errors.Join(errors.New("its routes have not been set yet"), now.err))
	case u.Masquerade && !now.masquerade[u.Network]:
		return notYet(u.Network, errors.New("its masquerading has not been set yet"))
	case u.Masquerade && t.inherits(now):
		if before.lacks(u.Network, true) {
			return notYet(u.Network, errors.New("its masquerading waits for a record that cannot be read; see: underlayctl network status"))
		}
	case u.Masquerade:
		if err := t.rules.why(); err != nil {
			return notYet(u.Network, fmt.Errorf("it is to be masqueraded: %w", err))
		}
	}
	return nil
}

// NotYetError is returned for a network whose routes and rules are not there.
type NotYetError struct {
	Network string
	Err     error
}

func notYet(network string, err error) error { return &NotYetError{network, err} }

func (e *NotYetError) Error() string { return fmt.Sprintf("network %q: %v", e.Network, e.Err) }
func (e *NotYetError) Unwrap() error { return e.Err }

// CNICode asks the runtime to try again later.
func (e *NotYetError) CNICode() uint { return ipam.CodeTryAgainLater }
