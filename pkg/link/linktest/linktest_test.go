package linktest

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kinds are made here with iproute2, to hold the probe's word against.
var kinds = map[string]string{
	"dummy":    "ip link add d0 type dummy",
	"ipvlan":   "ip link add eth1 type veth && ip link add link eth1 name i0 type ipvlan mode l3s",
	"iptables": "iptables-legacy -t nat -A POSTROUTING -j MASQUERADE && iptables-legacy -A FORWARD -j ACCEPT",
	"vlan":     "ip link add eth1 type veth && ip link add link eth1 name eth1.5 type vlan id 5",
	"vrf":      "ip link add red type vrf table 5",
}

func TestProbe(t *testing.T) {
	t.Parallel()
	for kind, commands := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			out, err := exec.Command("unshare", "--net", "sh", "-c", commands).CombinedOutput()
			has := err == nil
			probed := probe(kind)
			if has != (probed == nil) {
				t.Errorf("probe: %v; iproute2: %v, %s", probed, err, out)
			}
			if probed != nil && !errors.Is(probed, errors.ErrUnsupported) {
				t.Errorf("%v is not %v", probed, errors.ErrUnsupported)
			}
		})
	}
	t.Run("none of them", func(t *testing.T) {
		t.Parallel()
		if err := probe("warp"); err == nil || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v, which is no word of the kernel", err)
		}
	})
}

func TestJudge(t *testing.T) {
	unsupported := fmt.Errorf("add link: %w", unix.EOPNOTSUPP)
	tests := []struct {
		name   string
		probed error
		guest  string
		wanted bool
		want   string
	}{
		{name: "there and needed", wanted: true},
		{name: "there and needed, in the guest", wanted: true, guest: "1"},
		{name: "needed", probed: unsupported, wanted: true, want: "skip: this kernel has no ipvlan (add link: operation not supported); make test-guest runs the test on one that does"},
		{name: "needed, in the guest", probed: unsupported, wanted: true, guest: "1", want: "fail: neither kernel has ipvlan; the guest's says: add link: operation not supported"},
		{name: "refusal", probed: unsupported},
		{name: "no refusal", want: "skip: this kernel has ipvlan: there is no refusal to see"},
		{name: "not found out", probed: unix.EPERM, wanted: true, want: "fail: find out whether the kernel has ipvlan: operation not permitted"},
		{name: "not found out about a refusal", probed: unix.EPERM, want: "fail: find out whether the kernel has ipvlan: operation not permitted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(Guest, tt.guest)
			var got verdict
			judge(&got, "ipvlan", tt.probed, tt.wanted)
			if got.String() != tt.want {
				t.Errorf("got\n%q, want\n%q", got.String(), tt.want)
			}
		})
	}
}

// verdict is a test that writes down how it is ended, and goes on.
type verdict struct {
	testing.TB
	strings.Builder
}

func (*verdict) Helper() {}

func (v *verdict) Skipf(format string, args ...any) { fmt.Fprintf(v, "skip: "+format, args...) }

func (v *verdict) Fatalf(format string, args ...any) { fmt.Fprintf(v, "fail: "+format, args...) }
