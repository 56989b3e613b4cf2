package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

// up counts the flags that are up.
func (b *bed) up() (n int) {
	b.t.Helper()
	v, err := b.reg.View(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, wants := range v.Wants {
		n += len(wants)
	}
	return n
}

// TestFlagLasts: the flag of an ADD that gave up is answered when somebody can,
// and the ADD that comes again finds that at once. Without one it comes down.
func TestFlagLasts(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/29"}]],"blockPrefix":{"ipv4":29}}`, 2)
		defer b.end()
		owner, other := b.nodes[0], b.nodes[1]
		if _, _, err := owner.add(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.partition("n0")
		var full *ipam.ExhaustedError
		if _, _, err := other.add(""); !errors.As(err, &full) {
			t.Fatalf("while nobody answers: %v", err)
		}
		time.Sleep(lasting / 2)
		if b.up() != 1 {
			t.Error("the flag went down with its ADD")
		}
		if _, _, err := other.add(""); !errors.As(err, &full) {
			t.Fatalf("while nobody answers: %v", err)
		}
		b.partition()
		time.Sleep(lasting / 2)
		if b.up() != 0 {
			t.Error("the flag was not answered")
		}
		came := time.Now()
		_, _, err := other.add("")
		if took := time.Since(came); err != nil || took > time.Millisecond {
			t.Errorf("when it comes again: %s, %v", took, err)
		}
		b.partition("n0")
		if _, _, err := other.add(""); !errors.As(err, &full) {
			t.Fatalf("while nobody answers: %v", err)
		}
		time.Sleep(lasting + every)
		if b.up() != 0 {
			t.Errorf("the flag is up %s after the ADD", lasting+every)
		}
	})
}

// TestRow: where many have an address each and one has all that is free, an ADD
// does not wait for them all.
func TestRow(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBed(t, `{"version":1,"name":"a","kind":"shared","ranges":[[{"subnet":"10.0.0.0/25"}]],"blockPrefix":{"ipv4":25}}`, 50)
		defer b.end()
		for _, n := range b.nodes {
			if _, _, err := n.add(""); err != nil {
				t.Fatalf("%s: %v", n.name, err)
			}
		}
		for i, n := range b.nodes {
			came := time.Now()
			_, _, err := n.add("")
			if took := time.Since(came); err != nil || took > 1500*time.Millisecond {
				t.Fatalf("the second on %s: %s, %v", b.nodes[i].name, took, err)
			}
		}
	})
}
