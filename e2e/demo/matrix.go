package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"text/tabwriter"
	"time"
)

// How long a ping may wait for an answer that is to come, and for one that is
// not, which costs all of it.
const (
	soon   = 10 * time.Second
	enough = time.Second
)

// outcome is what one station's pings to another showed.
type outcome struct {
	asked, answered int
}

// reachable says whether a station is to answer another. The kernel hands
// nothing from a parent to its macvlan children or back, so a host and its own
// containers do not meet.
func reachable(from, to station) bool {
	sameHost := from.host == to.host
	return !sameHost || (from.container == nil) == (to.container == nil)
}

// cell is how an outcome is shown, and whether it is what it should be.
func (o outcome) cell(want bool) (text string, ok bool) {
	switch {
	case o.answered == o.asked && want:
		return "ok", true
	case o.answered == 0 && !want:
		return "blocked", true
	}
	return fmt.Sprintf("%d OF %d!", o.answered, o.asked), false
}

// pingAll pings from every station to every other, over IPv4 and IPv6, and
// prints who reaches whom.
func (d *demo) pingAll(ctx context.Context) error {
	err := d.matrix(ctx, "Who reaches whom, over IPv4 and IPv6 (row pings column)", d.stations, reachable)
	fmt.Fprint(d.out, `  blocked: the kernel passes nothing between a parent and its own macvlan children;
  "hostAccess": true in the configuration opens that way.
`)
	return err
}

// matrix pings from each of the stations to each other, and prints who reaches
// whom. It is an error if that is not as it should be.
func (d *demo) matrix(ctx context.Context, title string, stations []station, reachable func(from, to station) bool) error {
	d.title("%s", title)
	outcomes, err := ping(ctx, stations, reachable)
	if err != nil {
		return err
	}
	var wrong []error
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "  ")
	for _, to := range stations {
		fmt.Fprint(w, "\t", to.name)
	}
	fmt.Fprintln(w)
	for i, from := range stations {
		fmt.Fprint(w, "  ", from.name)
		for j, to := range stations {
			if i == j {
				fmt.Fprint(w, "\t.")
				continue
			}
			want := reachable(from, to)
			text, ok := outcomes[i][j].cell(want)
			if !ok {
				wrong = append(wrong, fmt.Errorf("%s -> %s: %d of %d pings answered, want all: %v",
					from.name, to.name, outcomes[i][j].answered, outcomes[i][j].asked, want))
			}
			fmt.Fprint(w, "\t", text)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return errors.Join(wrong...)
}

// ping returns outcomes by the indexes of asking and asked station.
func ping(ctx context.Context, stations []station, reachable func(from, to station) bool) ([][]outcome, error) {
	outcomes := make([][]outcome, len(stations))
	var (
		all  sync.WaitGroup
		mu   sync.Mutex // guards outcomes and errs
		errs []error
	)
	slots := make(chan struct{}, 8) // a small machine answers late when asked by all at once
	for i, from := range stations {
		outcomes[i] = make([]outcome, len(stations))
		for j, to := range stations {
			if i == j {
				continue
			}
			wait := enough
			if reachable(from, to) {
				wait = soon
			}
			for _, addr := range to.addrs {
				all.Go(func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					ok, err := from.Ping(ctx, addr, wait)
					mu.Lock()
					defer mu.Unlock()
					outcomes[i][j].asked++
					if ok {
						outcomes[i][j].answered++
					}
					if err != nil {
						errs = append(errs, err)
					}
				})
			}
		}
	}
	all.Wait()
	return outcomes, errors.Join(errs...)
}
