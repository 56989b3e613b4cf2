package route

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// What the kernel says is read whole or not at all.
func FuzzParse(f *testing.F) {
	tbl, err := openTable(Config{})
	must(f, err)
	f.Cleanup(func() { must(f, tbl.Close()) })
	for _, s := range []string{"10.1.0.0/24 via 192.0.2.2 dev lo src 192.0.2.1 mtu 1400 onlink", "unreachable 2001:db8::/32 metric 7", "0.0.0.0/0 dev lo"} {
		req, err := tbl.addition(parse(f, s))
		must(f, err)
		f.Add(req.Serialize()[unix.NLMSG_HDRLEN:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b):len(b)] // so that what lies behind cannot hide a panic
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			r, ours, err := tbl.parse(b, family)
			if ours && (err != nil || !r.Dst.IsValid() || r.Dst.Addr().Is4() != (family == unix.AF_INET)) {
				t.Errorf("%s, %v", r, err)
			}
		}
		for _, kind := range []uint16{unix.RTM_NEWROUTE, unix.RTM_NEWLINK, unix.RTM_NEWADDR} {
			if n := tbl.news(nlsock.Message{NlMsghdr: unix.NlMsghdr{Type: kind}, Body: b}); len(b) < 4 && n != reconcile.Around {
				t.Errorf("news %d of type %d", n, kind)
			}
		}
	})
}

// What is written is read back as it was.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	tbl, err := openTable(Config{Table: 1000})
	must(t, err)
	t.Cleanup(func() { must(t, tbl.Close()) })
	for _, s := range []string{
		"10.1.0.0/24 via 192.0.2.2 dev lo src 192.0.2.1 metric 7 mtu 1400 onlink", "unreachable 2001:db8::/32", "::/0 via fe80::1 dev lo", "0.0.0.0/0 dev lo",
	} {
		want, err := parse(t, s).Canonical()
		must(t, err)
		req, err := tbl.addition(want)
		must(t, err)
		got, ours, err := tbl.parse(req.Serialize()[unix.NLMSG_HDRLEN:], family(want.Dst.Addr()))
		must(t, err)
		if !ours || got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		route Route
		want  string
	}{
		{"IPv4", parse(t, "10.1.0.0/24 via 192.0.2.2 dev eth1"), ""},
		{"no prefix", Route{Dev: "eth1"}, "the prefix is malformed"},
		{"IPv4 as IPv6", Route{Dst: prefix("::ffff:10.1.0.0/120"), Dev: "eth1"}, "the prefix is malformed"},
		{"host bits", parse(t, "10.1.0.1/24 dev eth1"), "the prefix is that of 10.1.0.0/24"},
		{"no interface", parse(t, "10.1.0.0/24 via 192.0.2.2"), "the interface is missing"},
		{"to nowhere, through an interface", parse(t, "unreachable 10.1.0.0/24 dev eth1"), "a route to nowhere has no next hop"},
		{"gateway of another family", parse(t, "10.1.0.0/24 via 2001:db8::1 dev eth1"), "the gateway is of another address family"},
		{"source of another family", parse(t, "2001:db8::/64 dev eth1 src 192.0.2.1"), "the source is of another address family"},
		{"zone", parse(t, "2001:db8::/64 via fe80::1%eth1 dev eth1"), "the zone belongs into the interface"},
		{"onlink without gateway", parse(t, "10.1.0.0/24 dev eth1 onlink"), "only a gateway can be on the link"},
		{"negative", parse(t, "10.1.0.0/24 dev eth1 mtu -1"), "the MTU or the metric is negative"},
	}
	for _, tt := range tests {
		got := ""
		if _, err := tt.route.Canonical(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	is := func(s, want string) {
		t.Helper()
		if got, err := parse(t, s).Canonical(); err != nil || got != parse(t, want) {
			t.Errorf("%s: got %s, %v, want %s", s, got, err, want)
		}
	}
	is("10.1.0.0/24 via ::ffff:192.0.2.2 dev eth1", "10.1.0.0/24 via 192.0.2.2 dev eth1")
	is("2001:db8::/64 dev eth1 metric 1024", "2001:db8::/64 dev eth1")
	is("10.1.0.0/24 dev eth1 metric 1024", "10.1.0.0/24 dev eth1 metric 1024")
}
