package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
)

func TestDemo(t *testing.T) {
	bin := t.TempDir()
	if err := binaries.Ours(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	for _, keep := range []bool{false, true} {
		l := lab.Test(t) // for a name of its own, and the removal when the test ends
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		d := demo{lab: l.Name, bin: bin, keep: keep, out: &out}
		if err := d.run(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		for _, want := range []string{"h2     c4 ", "c6 on h1 has got 192.0.2.", "h3 ", "ok", "blocked", "p3 on h3 has got 10.5.", "via 192.0.2.3 dev eth1", "w4 on h4 has got 10.6.", "h4   vxlan    vxlan    vxlan    ."} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, &out)
			}
		}
		if got := strings.Contains(out.String(), "0 links left, 0 addresses held"); got == keep {
			t.Errorf("keep %v: detached %v in\n%s", keep, got, &out)
		}
		// A name that is taken cannot be taken again.
		_, err := lab.New(t.Context(), l.Name)
		if up := err != nil; up != keep {
			t.Errorf("keep %v: the lab is up: %v (%v)", keep, up, err)
		}
	}
}

func TestCell(t *testing.T) {
	tests := []struct {
		name     string
		answered int
		want     bool
		cell     string
		ok       bool
	}{
		{"all, as they should", 2, true, "ok", true},
		{"none, as they should", 0, false, "blocked", true},
		{"one is lost", 1, true, "1 OF 2!", false},
		{"all are lost", 0, true, "0 OF 2!", false},
		{"one leaks", 1, false, "1 OF 2!", false},
		{"all leak", 2, false, "2 OF 2!", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cell, ok := outcome{asked: 2, answered: tt.answered}.cell(tt.want)
			if cell != tt.cell || ok != tt.ok {
				t.Errorf("%q, %v, want %q, %v", cell, ok, tt.cell, tt.ok)
			}
		})
	}
}
