package lease_test

import (
	"fmt"
	"strings"
	"testing"
)

// edge leads from a state to another. Faults may happen, but nothing that has
// to be reachable may rely on them.
type edge[S comparable] struct {
	to    S
	label label
	fault bool
}

// label is text and numbers for it, put together only when somebody reads it.
type label struct {
	format string
	n, a   int
	text   string
}

func say(format string, n int) label   { return label{format: format, n: n} }
func (l label) at(a int) label         { l.a = a; return l }
func (l label) with(text string) label { l.text = text; return l }

func (l label) String() string {
	return strings.NewReplacer("%n", fmt.Sprint(l.n+1), "%a", fmt.Sprint(l.a), "%s", l.text).Replace(l.format)
}

// search walks over all states that can be reached from start.
type search[S comparable] struct {
	states []S
	index  map[S]int32
	parent []int32
	label  []label
	// back holds, by target, the chain of edges that are no faults.
	head, next, from []int32
	// violated is the first state that broke an invariant, or -1.
	violated int32
	why      string
	complete bool
}

func explore[S comparable](start S, limit int, successors func(*S) []edge[S], broken func(*S) string) *search[S] {
	x := &search[S]{index: make(map[S]int32), violated: -1}
	x.add(start, -1, label{})
	for i := int32(0); int(i) < len(x.states); i++ {
		if len(x.states) > limit {
			return x
		}
		cur := x.states[i]
		for _, e := range successors(&cur) {
			j, known := x.index[e.to]
			if !known {
				j = x.add(e.to, i, e.label)
				if why := broken(&e.to); why != "" {
					x.violated, x.why = j, why
					return x
				}
			}
			if !e.fault {
				x.from = append(x.from, i)
				x.next = append(x.next, x.head[j])
				x.head[j] = int32(len(x.from) - 1)
			}
		}
	}
	x.complete = true
	return x
}

func (x *search[S]) add(s S, parent int32, label label) int32 {
	i := int32(len(x.states))
	x.index[s] = i
	x.states = append(x.states, s)
	x.parent = append(x.parent, parent)
	x.label = append(x.label, label)
	x.head = append(x.head, -1)
	return i
}

// trace tells how a state is reached.
func (x *search[S]) trace(i int32) string {
	var steps []string
	for ; i > 0; i = x.parent[i] {
		steps = append(steps, x.label[i].String())
	}
	var b strings.Builder
	for k := len(steps) - 1; k >= 0; k-- {
		fmt.Fprintf(&b, "\n  %2d %s", len(steps)-k, steps[k])
	}
	return b.String()
}

// unreachable returns a state from which no state of the goal can be reached
// without a fault, and how many there are.
func (x *search[S]) unreachable(goal func(*S) bool) (first int32, n int) {
	seen := make([]bool, len(x.states))
	var queue []int32
	for i := range x.states {
		if goal(&x.states[i]) {
			seen[i] = true
			queue = append(queue, int32(i))
		}
	}
	for len(queue) > 0 {
		i := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for k := x.head[i]; k >= 0; k = x.next[k] {
			if f := x.from[k]; !seen[f] {
				seen[f] = true
				queue = append(queue, f)
			}
		}
	}
	first = -1
	for i := range seen {
		if !seen[i] {
			n++
			if first < 0 {
				first = int32(i)
			}
		}
	}
	return first, n
}

func TestSearchFindsWhatIsThere(t *testing.T) {
	t.Parallel()
	// A counter that gets stuck at 3, and from 5 on needs a fault to get past 6.
	steps := func(s *int) []edge[int] {
		if *s == 3 || *s >= 6 {
			return nil
		}
		return []edge[int]{{*s + 1, say("one", 0), false}, {*s + 2, say("two", 0), *s > 3}}
	}
	x := explore(0, 100, steps, func(s *int) string { return "" })
	if first, n := x.unreachable(func(s *int) bool { return *s == 6 }); !x.complete || n != 2 || x.states[first] != 3 {
		t.Errorf("complete %v, %d stuck, the first %d", x.complete, n, first)
	}
	x = explore(0, 100, steps, func(s *int) string {
		if *s == 5 {
			return "five"
		}
		return ""
	})
	if x.violated < 0 || x.why != "five" || x.trace(x.violated) == "" {
		t.Errorf("violated %d: %s", x.violated, x.why)
	}
	if x = explore(0, 2, steps, func(*int) string { return "" }); x.complete {
		t.Error("a search that hit its limit says it is complete")
	}
}
