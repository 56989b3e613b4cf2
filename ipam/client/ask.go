package client

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client/wire"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// How long the agent has for its answer. An ADD can do nothing without, while
// a DEL can do all that matters.
const (
	allocatePatience = 20 * time.Second
	patience         = 5 * time.Second
	silentPatience   = 500 * time.Millisecond
)

// do has the agent answer q, or runs f on the ledger if there is no agent, and
// then returns no response.
func (c *Client) do(ctx context.Context, q *wire.Request, f func(*ledger.Ledger) error) (*wire.Response, error) {
	if err := c.CheckPlace(); err != nil {
		return nil, err
	}
	q.Version, q.DataDir = wire.Version, filepath.Clean(c.o.DataDir)
	reading := q.Op != wire.OpAllocate && q.Op != wire.OpRelease && q.Op != wire.OpStatus
	var lost error
	for {
		a, err := c.ask(ctx, q, -1)
		if errors.Is(err, errNobody) {
			s, derr := c.direct(ctx, reading, f)
			if s < 0 {
				return nil, derr
			}
			a, err = c.ask(ctx, q, s)
		}
		switch {
		case err == nil:
			err = a.Failure.Err()
			if errors.Is(err, wire.ErrElsewhere) {
				return nil, c.open(ctx, reading, f)
			}
			return a, err
		case errors.Is(err, errLost):
			// What it has done is found by the next try.
			lost = err
			select {
			case <-ctx.Done():
			case <-time.After(poll / 10):
				continue
			}
			err = errSilent
		}
		if errors.Is(err, errSilent) {
			c.silent.Store(true)
			if lost != nil {
				err = fmt.Errorf("%w; before, %w", err, lost)
			}
			err = &ipam.LedgerError{Path: filepath.Join(c.o.DataDir, "ledger.db"), Msg: "is served by an agent", Err: err,
				Hint: "see: systemctl status underlayd", Code: ipam.CodeTryAgainLater}
		}
		return nil, err
	}
}

// ask makes one request of the agent, on s if that is connected.
func (c *Client) ask(ctx context.Context, q *wire.Request, s socket) (a *wire.Response, err error) {
	wait := patience
	switch {
	case c.silent.Load():
		wait = silentPatience
	case q.Op == wire.OpAllocate:
		wait = allocatePatience
	}
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end))
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	q.Deadline = int64(wire.Boottime() + wait)
	if s < 0 {
		if s, err = c.dial(ctx); err != nil {
			return nil, err
		}
	}
	defer s.close()
	return s.exchange(ctx, q)
}

// direct runs f on the ledger. While it waits for the lock it looks for an
// agent, and if one has come returns the connection to it instead.
func (c *Client) direct(ctx context.Context, reading bool, f func(*ledger.Ledger) error) (_ socket, err error) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	agent, over := socket(-1), false
	var elsewhere error
	var timer *time.Timer
	mu.Lock()
	timer = time.AfterFunc(poll, func() {
		s, err := c.dial(waiting)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil && !over:
			if elsewhere = Elsewhere(c.o); elsewhere != nil {
				cancel()
				return
			}
			timer.Reset(poll)
		case err == nil && over:
			s.close()
		case err == nil:
			agent = s
			cancel()
		}
	})
	mu.Unlock()
	l, err := c.openLedger(waiting, reading)
	mu.Lock()
	over = true
	timer.Stop()
	mu.Unlock()
	switch {
	case err != nil:
		if agent >= 0 {
			return agent, nil
		}
		if elsewhere != nil {
			err = elsewhere
		}
		return -1, err
	case agent >= 0:
		agent.close()
	}
	defer closeLedger(l, &err)
	return -1, f(l)
}

func (c *Client) openLedger(ctx context.Context, reading bool) (*ledger.Ledger, error) {
	o := c.o
	o.ReadOnly = reading
	return ledger.Open(ctx, o)
}

// closeLedger adds to *err what goes wrong, and else leaves it as it is.
func closeLedger(l *ledger.Ledger, err *error) {
	if cerr := l.Close(); cerr != nil {
		*err = errors.Join(*err, cerr)
	}
}

// open runs f on the ledger, whatever agent there is.
func (c *Client) open(ctx context.Context, reading bool, f func(*ledger.Ledger) error) (err error) {
	l, err := c.openLedger(ctx, reading)
	if err != nil {
		return err
	}
	defer closeLedger(l, &err)
	return f(l)
}
