package neigh

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is there before; what is wanted; what ip and bridge show then.
func TestApply(t *testing.T) {
	t.Parallel()
	const all = `10.0.0.1 dev vx1 lladdr 02:00:00:00:00:01
2001:db8:1::1 dev vx1 lladdr 02:00:00:00:00:01
self 02:00:00:00:00:01 dev vx1 dst 192.0.2.11
self 00:00:00:00:00:00 dev vx1 dst 192.0.2.11
self 00:00:00:00:00:00 dev vx1 dst 192.0.2.12
self 02:00:00:00:00:01 dev vx6 dst 2001:db8::11
10.0.0.2 dev br2 lladdr 02:00:00:00:00:02
self 02:00:00:00:00:02 dev vx2 dst 192.0.2.12
master 02:00:00:00:00:02 dev vx2
`
	const allShown = `10.0.0.1 dev vx1 lladdr 02:00:00:00:00:01
10.0.0.2 dev br2 lladdr 02:00:00:00:00:02
2001:db8:1::1 dev vx1 lladdr 02:00:00:00:00:01
02:00:00:00:00:01 dev vx6 dst 2001:db8::11 self permanent
00:00:00:00:00:00 dev vx1 dst 192.0.2.11 self permanent
00:00:00:00:00:00 dev vx1 dst 192.0.2.12 self permanent
02:00:00:00:00:01 dev vx1 dst 192.0.2.11 self permanent
02:00:00:00:00:02 dev vx2 master br2 static
02:00:00:00:00:02 dev vx2 dst 192.0.2.12 self permanent
`
	tests := []struct {
		name      string
		ip, fdb   string // commands
		want      string
		shows     string
		err       string
		leftovers string // after nothing is wanted
	}{
		{name: "nothing"},
		{name: "every kind of entry", want: all, shows: allShown},
		{
			name: "an earlier life's go, what is learned or of others stays",
			ip: `link add other type vxlan id 77 dstport 8472 local 192.0.2.1
neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev vx1 nud permanent
neigh add 2001:db8:1::9 lladdr 02:00:00:00:00:09 dev br2 nud permanent
neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev vx1 nud stale
neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev other nud permanent`,
			fdb: `fdb add 02:00:00:00:00:09 dev vx1 dst 192.0.2.9 self permanent
fdb append 00:00:00:00:00:00 dev vx1 dst 192.0.2.9 self permanent
fdb append 00:00:00:00:00:00 dev vx1 dst 192.0.2.12 port 4789 self permanent
fdb add 02:00:00:00:00:0a dev vx1 dst 192.0.2.9 port 4789 vni 7 self permanent
fdb add 02:00:00:00:00:09 dev vx2 master static
fdb add 02:00:00:00:00:0b dev vx2 master dynamic`,
			want: all,
			shows: `10.0.0.9 dev other lladdr 02:00:00:00:00:09
` + `10.0.0.1 dev vx1 lladdr 02:00:00:00:00:01
10.0.0.2 dev br2 lladdr 02:00:00:00:00:02
2001:db8:1::1 dev vx1 lladdr 02:00:00:00:00:01
02:00:00:00:00:01 dev vx6 dst 2001:db8::11 self permanent
00:00:00:00:00:00 dev vx1 dst 192.0.2.11 self permanent
00:00:00:00:00:00 dev vx1 dst 192.0.2.12 self permanent
02:00:00:00:00:01 dev vx1 dst 192.0.2.11 self permanent
02:00:00:00:00:0b dev vx2 master br2
02:00:00:00:00:02 dev vx2 master br2 static
02:00:00:00:00:02 dev vx2 dst 192.0.2.12 self permanent
`,
			leftovers: "10.0.0.9 dev other lladdr 02:00:00:00:00:09\n02:00:00:00:00:0b dev vx2 master br2\n",
		},
		{
			name: "everything about an entry changes",
			ip: `neigh add 10.0.0.1 lladdr 02:00:00:00:00:09 dev vx1 nud permanent
neigh add 2001:db8:1::1 lladdr 02:00:00:00:00:09 dev vx1 nud reachable
neigh add 10.0.0.2 lladdr 02:00:00:00:00:09 dev br2 nud stale`,
			fdb: `fdb add 02:00:00:00:00:01 dev vx1 dst 192.0.2.9 self permanent
fdb add 02:00:00:00:00:01 dev vx6 dst 2001:db8::9 self permanent
fdb add 02:00:00:00:00:02 dev vx2 dst 192.0.2.12 port 4789 self permanent
fdb add 02:00:00:00:00:02 dev vx2 master dynamic`,
			want: all, shows: allShown,
		},
		{
			name: "what the kernel refuses holds up nothing",
			want: `10.0.0.1 dev vx9 lladdr 02:00:00:00:00:01
self 02:00:00:00:00:01 dev vx1 dst 2001:db8::11
self 02:00:00:00:00:01 dev vx6 dst 192.0.2.11
master 02:00:00:00:00:01 dev vx1
10.0.0.2 dev lo lladdr 02:00:00:00:00:02
10.0.0.3 dev vx1 lladdr 03:00:00:00:00:03
10.0.0.4 dev vx1 lladdr 02:00:00:00:00:04
10.0.0.4 dev vx1 lladdr 02:00:00:00:00:05`,
			shows: "10.0.0.4 dev vx1 lladdr 02:00:00:00:00:04\n",
			err: `peer a: set 10.0.0.1 dev vx9 lladdr 02:00:00:00:00:01: look up interface "vx9": no such interface
peer b: set self 02:00:00:00:00:01 dev vx1 dst 2001:db8::11: address family not supported by protocol
peer c: set self 02:00:00:00:00:01 dev vx6 dst 192.0.2.11: address family not supported by protocol
peer d: set master 02:00:00:00:00:01 dev vx1: operation not supported
peer e: set 10.0.0.2 dev lo lladdr 02:00:00:00:00:02: the device is not one of ours
peer f: 10.0.0.3 dev vx1 lladdr 03:00:00:00:00:03: the MAC is of a group
peer h: 10.0.0.4 dev vx1 lladdr 02:00:00:00:00:05: peer g wants 10.0.0.4 dev vx1 lladdr 02:00:00:00:00:04`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.ip(t, tt.ip)
			h.bridge(t, tt.fdb)
			r := h.reconciler(t, Config{})
			for _, time := range []string{"first", "second"} {
				said := ""
				if err := r.Apply(t.Context(), wants(t, tt.want)); err != nil {
					said = err.Error()
				}
				if diff := cmp.Diff(tt.err, said); diff != "" {
					t.Errorf("the %s time, errors (-want +got):\n%s", time, diff)
				}
				if diff := cmp.Diff(sorted(tt.shows), sorted(h.shows(t))); diff != "" {
					t.Errorf("the %s time (-want +got):\n%s", time, diff)
				}
			}
			counts := r.Counts()
			_ = r.Apply(t.Context(), wants(t, tt.want))
			if after := r.Counts(); after.Written != counts.Written || after.Refused != counts.Refused {
				t.Errorf("applied again, it writes: %+v, before %+v", after, counts)
			}
			must(t, r.Apply(t.Context(), nil))
			if diff := cmp.Diff(sorted(tt.leftovers), sorted(h.shows(t))); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever happens to the entries, they are back, and the slow timer has no
// part in it.
func TestRun(t *testing.T) {
	t.Parallel()
	const own = `10.0.0.1 dev vx1 lladdr 02:00:00:00:00:01
self 02:00:00:00:00:01 dev vx1 dst 192.0.2.11
self 00:00:00:00:00:00 dev vx2 dst 192.0.2.11
10.0.0.2 dev br2 lladdr 02:00:00:00:00:02
master 02:00:00:00:00:02 dev vx2
`
	tests := []struct {
		name    string
		ip, fdb string
	}{
		{name: "a neighbour is deleted", ip: "neigh del 10.0.0.1 dev vx1"},
		{name: "a neighbour is changed", ip: "neigh change 10.0.0.1 lladdr 02:00:00:00:00:77 dev vx1 nud permanent"},
		{name: "a neighbour is no longer permanent", ip: "neigh change 10.0.0.1 lladdr 02:00:00:00:00:01 dev vx1 nud stale"},
		{name: "one too many", ip: "neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev vx1 nud permanent"},
		{name: "an FDB entry is deleted", fdb: "fdb del 02:00:00:00:00:01 dev vx1 dst 192.0.2.11 self"},
		{name: "an FDB entry is changed", fdb: "fdb replace 02:00:00:00:00:01 dev vx1 dst 192.0.2.77 self permanent"},
		{name: "an entry for all is deleted", fdb: "fdb del 00:00:00:00:00:00 dev vx2 dst 192.0.2.11 self"},
		{name: "an entry of the bridge is deleted", fdb: "fdb del 02:00:00:00:00:02 dev vx2 master"},
		{name: "flap", ip: "link set vx1 down\nlink set br2 down\nlink set br2 up\nlink set vx1 up"},
		{name: "out of the bridge and back", ip: "link set vx2 nomaster\nlink set vx2 master br2"},
		{name: "a device is made anew", ip: "link del vx1\n" + makeVX1 + "\nlink set vx1 up"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			r := h.reconciler(t, Config{Retry: time.Hour, MaxRetry: time.Hour, Resync: time.Hour})
			run(t, r)
			must(t, r.Apply(t.Context(), wants(t, own)))
			want := h.shows(t)
			h.ip(t, tt.ip)
			h.bridge(t, tt.fdb)
			waitFor(t, "the entries", func() bool { return sorted(h.shows(t)) == sorted(want) })
			before, since := r.Counts(), time.Now()
			waitFor(t, "rest", func() bool {
				if now := r.Counts(); now != before {
					before, since = now, time.Now()
				}
				return time.Since(since) > 100*time.Millisecond
			})
		})
	}
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	good := parseEntry(t, "10.0.0.1 dev vx1 lladdr 02:00:00:00:00:01")
	with := func(change func(*Entry)) Entry {
		e := good
		change(&e)
		return e
	}
	tests := []struct {
		name  string
		entry Entry
		want  string
	}{
		{"good", good, ""},
		{"no kind", with(func(e *Entry) { e.Kind = 0 }), "the kind is missing"},
		{"no device", with(func(e *Entry) { e.Dev = "" }), "the device is missing"},
		{"no MAC", with(func(e *Entry) { e.MAC = MAC{} }), "the MAC is missing"},
		{"no address", parseEntry(t, "self 02:00:00:00:00:01 dev vx1 dst ::"), "the address is missing"},
		{"group", parseEntry(t, "self 00:00:00:00:00:00 dev vx1 dst 239.1.1.1"), "the address is of a group"},
		{"zone", parseEntry(t, "fe80::1%vx1 dev vx1 lladdr 02:00:00:00:00:01"), "the zone belongs into the device"},
		{"bridge", with(func(e *Entry) { e.Kind = Master }), "a bridge knows no addresses"},
	}
	for _, tt := range tests {
		got := ""
		if _, err := tt.entry.Canonical(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	mapped := parseEntry(t, "::ffff:10.0.0.1 dev vx1 lladdr 02:00:00:00:00:01")
	if got, err := mapped.Canonical(); err != nil || got != good {
		t.Errorf("got %s, %v", got, err)
	}
	for _, s := range []string{"", "02:00:00:00:00", "02:00:00:00:00:00:00:01"} {
		if _, err := ParseMAC(s); err == nil {
			t.Errorf("%q is a MAC", s)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no device is enough")
	}
}
