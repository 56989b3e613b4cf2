package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// thing is an object with a key and a value.
type thing struct{ key, value string }

func (t thing) Key() string    { return t.key }
func (t thing) String() string { return t.key + "=" + t.value }

func (t thing) Canonical() (thing, error) {
	if t.key == "" {
		return t, errors.New("has no key")
	}
	t.value = strings.ToLower(t.value)
	return t, nil
}

// things are what text spells: key=value, with the key as the name of the peer.
func things(text string) (out []Want[thing]) {
	for _, word := range strings.Fields(text) {
		key, value, _ := strings.Cut(word, "=")
		out = append(out, Want[thing]{Peer: "of-" + key, Object: thing{key, value}})
	}
	return out
}

// kernel holds things, in the order they came.
type kernel struct {
	Herald
	mu      sync.Mutex
	have    []thing
	refuse  map[thing]error // to be added or deleted
	forget  map[thing]int   // taken and not kept, so many times
	cut     []int           // verdicts that the calls to come give before they break off
	broken  error           // for List
	written []string
	deaf    chan error
}

var (
	_        Kernel[thing] = (*kernel)(nil)
	errCut                 = errors.New("cut")
	errThing               = errors.New("refused")
)

func newKernel(have ...thing) *kernel {
	return &kernel{have: have, refuse: make(map[thing]error), forget: make(map[thing]int), deaf: make(chan error)}
}

func (k *kernel) List(ctx context.Context) ([]thing, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.have), errors.Join(ctx.Err(), k.broken)
}

func (k *kernel) Change(ctx context.Context, changes []Change[thing]) (verdicts []error, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	known := len(changes)
	if len(k.cut) > 0 {
		known, k.cut = min(known, k.cut[0]), k.cut[1:]
		err = errCut
	}
	for i, c := range changes {
		verdict := k.changeLocked(c)
		if i < known {
			verdicts = append(verdicts, verdict)
		}
	}
	return verdicts, err
}

func (k *kernel) changeLocked(c Change[thing]) error {
	word := map[Verb]string{Add: "+" + c.New.String(), Replace: c.Old.String() + ">" + c.New.String(), Delete: "-" + c.Old.String()}[c.Verb]
	k.written = append(k.written, word)
	at := slices.Index(k.have, c.Old)
	switch {
	case c.Verb == Delete && k.refuse[c.Old] != nil:
		return k.refuse[c.Old]
	case c.Verb != Delete && k.refuse[c.New] != nil:
		return k.refuse[c.New]
	case c.Verb != Delete && k.forget[c.New] > 0:
		k.forget[c.New]--
	case c.Verb == Add && slices.ContainsFunc(k.have, func(t thing) bool { return t.key == c.New.key }):
		return fmt.Errorf("%s is there", c.New.key)
	case c.Verb == Add:
		k.have = append(k.have, c.New)
	case at < 0:
		return fmt.Errorf("%s is not there", c.Old)
	case c.Verb == Replace:
		k.have[at] = c.New
	default:
		k.have = slices.Delete(k.have, at, at+1)
	}
	return nil
}

func (k *kernel) Watch(ctx context.Context, heard func(News)) error {
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- k.Herald.Watch(ctx, heard) }()
	select {
	case err := <-ended:
		return err
	case err := <-k.deaf:
		cancel()
		<-ended
		return err
	}
}

func (k *kernel) Close() error { return nil }

// do changes what is there, as others do, and tells.
func (k *kernel) do(n News, f func()) {
	k.mu.Lock()
	f()
	k.mu.Unlock()
	k.Tell(n)
}

// said is what was written since it was last asked.
func (k *kernel) said() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := strings.Join(k.written, " ")
	k.written = nil
	return s
}

func (k *kernel) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, t := range k.have {
		all = append(all, t.String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}
