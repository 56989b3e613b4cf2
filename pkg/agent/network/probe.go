package network

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/hostnet"
)

const (
	// few neighbours are asked for at a time: the kernel has 1,024 places.
	few = 64
	// listen is how long their answers are waited for: the kernel asks three
	// times, a second apart, before it gives one up.
	listen = 4 * time.Second
	// look is how often answers are looked for.
	look = 100 * time.Millisecond
	// readEvery is how often the kernel's opinion is read of those that nobody
	// asks: what it sends them for others it asks for too.
	readEvery = 10 * time.Second
	// askAgain is when those are asked again that were silent: later each time, up
	// to seldom, until somebody new is asked. All on the link hear the question.
	askAgain = 10 * time.Second
	seldom   = 10 * time.Minute
)

// probes find out which peers answer.
type probes struct {
	wake chan struct{}
	// changed has a value when somebody answers who did not, or no longer.
	changed chan struct{}

	mu      sync.Mutex
	answers map[hostnet.Neighbour]hostnet.Answer // of all that are wanted
	queue   []hostnet.Neighbour
	pause   time.Duration // until all silent ones are asked again
}

func newProbes() probes {
	return probes{wake: make(chan struct{}, 1), changed: make(chan struct{}, 1), answers: make(map[hostnet.Neighbour]hostnet.Answer)}
}

// want says of whom to find out. Who is new is asked soon; anew: there is somebody.
func (p *probes) want(pl *plan.Plan) (anew bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answers := make(map[hostnet.Neighbour]hostnet.Answer, len(p.answers))
	for _, peer := range pl.Peers {
		n := peer.Near
		if n.Dev == "" {
			continue
		}
		answer, known := p.answers[n]
		if _, twice := answers[n]; !known && !twice {
			p.queue, anew = append(p.queue, n), true
		}
		answers[n] = answer
	}
	p.answers = answers
	if len(p.queue) > 0 {
		p.pause = askAgain
		ring(p.wake)
	}
	return anew
}

// answer is what is known of a neighbour.
func (p *probes) answer(n hostnet.Neighbour) hostnet.Answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers[n]
}

// run asks until ctx ends.
func (p *probes) run(ctx context.Context, host Host) {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	asked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-tick.C:
			p.read(ctx, host)
			p.requeue(time.Since(asked))
		}
		for batch := p.next(); len(batch) > 0 && ctx.Err() == nil; batch = p.next() {
			p.batch(ctx, host, batch)
			asked = time.Now()
		}
	}
}

// next takes some that are still wanted from the queue.
func (p *probes) next() (batch []hostnet.Neighbour) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 && len(batch) < few {
		n := p.queue[0]
		p.queue = p.queue[1:]
		if _, wanted := p.answers[n]; wanted {
			batch = append(batch, n)
		}
	}
	return batch
}

// requeue has those asked again of whom nothing is known, or nothing good, if
// the last question is long enough ago.
func (p *probes) requeue(ago time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ago < p.pause {
		return
	}
	p.pause = min(2*p.pause, seldom)
	p.queue = nil
	for n, answer := range p.answers {
		if answer != hostnet.Found {
			p.queue = append(p.queue, n)
		}
	}
}

// batch asks some, and waits for their answers. What cannot be asked or read
// stays unknown, which is only told.
func (p *probes) batch(ctx context.Context, host Host, batch []hostnet.Neighbour) {
	if host.Ask(ctx, batch) != nil {
		return
	}
	for until := time.Now().Add(listen); time.Now().Before(until); {
		select {
		case <-ctx.Done():
			return
		case <-time.After(look):
		}
		seen := p.read(ctx, host)
		if !slices.ContainsFunc(batch, func(n hostnet.Neighbour) bool { return seen[n] == hostnet.Unknown }) {
			return
		}
	}
}

// read takes over what the kernel knows.
func (p *probes) read(ctx context.Context, host Host) map[hostnet.Neighbour]hostnet.Answer {
	p.mu.Lock()
	var devs []string
	for n := range p.answers {
		if !slices.Contains(devs, n.Dev) {
			devs = append(devs, n.Dev)
		}
	}
	p.mu.Unlock()
	seen, err := host.Answers(ctx, devs)
	if err != nil {
		return nil
	}
	for n, answer := range seen {
		if answer == hostnet.Asking {
			seen[n] = hostnet.Unknown // in a moment it will be one of the others
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, answer := range seen {
		if before, wanted := p.answers[n]; wanted && answer != hostnet.Unknown && answer != before {
			p.answers[n] = answer
			ring(p.changed)
		}
	}
	return seen
}
