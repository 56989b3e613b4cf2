// Package demand counts what is given out of late, by pool, so that whoever leases
// ahead knows how fast it goes.
package demand

import (
	"sync"
	"time"
)

// window is how far back Recent looks.
const window = 2 * time.Second

// Counter counts; the zero value is empty. Its methods may be called
// concurrently.
type Counter struct {
	mu    sync.Mutex
	times map[string][]time.Time
}

// Add counts one.
func (c *Counter) Add(pool string, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.times == nil {
		c.times = map[string][]time.Time{}
	}
	c.times[pool] = append(c.recentLocked(pool, now), now)
}

// Recent returns how many there were in the last two seconds.
func (c *Counter) Recent(pool string, now time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.recentLocked(pool, now))
}

// recentLocked drops what is older, or from before the clock was set back.
func (c *Counter) recentLocked(pool string, now time.Time) []time.Time {
	times := c.times[pool]
	if n := len(times); n > 0 && now.Before(times[n-1]) {
		times = nil
	}
	for len(times) > 0 && now.Sub(times[0]) >= window {
		times = times[1:]
	}
	return times
}
