package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
)

func TestParseArgs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		want     Args
		err      string
	}{
		{name: "empty"},
		{name: "value with equals sign", in: "IgnoreUnknown=1;LABEL=a=b;IP=10.0.0.1", want: Args{IPs: []string{"10.0.0.1"}}},
		{name: "Multus list", in: "IP=10.0.0.1, fd00::1,;MAC=02:00:00:00:00:01", want: Args{IPs: []string{"10.0.0.1", "fd00::1"}, MAC: "02:00:00:00:00:01"}},
		{name: "Kubernetes", in: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=y", want: Args{Owner: "ns/p-0"}},
		{name: "trailing semicolon", in: "IgnoreUnknown=true;", want: Args{}},
		{name: "unknown", in: "FOO=1;BAR=2", err: `CNI_ARGS: unknown arguments ["FOO=1" "BAR=2"]`},
		{name: "unknown and told so", in: "IgnoreUnknown=0;FOO=1", err: `CNI_ARGS: unknown arguments ["FOO=1"]`},
		{name: "no value", in: "IgnoreUnknown=1;FOO", err: `CNI_ARGS: "FOO" is not KEY=VALUE`},
		{name: "no truth", in: "IgnoreUnknown=maybe", err: `CNI_ARGS: IgnoreUnknown: "maybe"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseArgs(tt.in)
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
					t.Fatalf("error %v, want %s", err, tt.err)
				}
				if code := toCNI(err).(*types.Error).Code; code != 4 {
					t.Errorf("code %d, want 4", code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func FuzzParseArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;IP=10.0.0.1,fd00::1;MAC=02:00:00:00:00:01;K8S_POD_NAME=p")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseArgs(s)
		if err != nil {
			return
		}
		r := &Request{Args: a}
		ips, err := r.RequestedIPs(&NetConf{})
		if err == nil && len(ips) > len(a.IPs) {
			t.Fatalf("%d addresses of %d", len(ips), len(a.IPs))
		}
	})
}

// A plugin embeds NetConf, and may do so in more than one step.
func TestDecodeNamesKeys(t *testing.T) {
	t.Parallel()
	type Shared struct {
		NetConf
		MTU int `json:"mtu"`
	}
	tests := []struct{ conf, want string }{
		{`{"mtu": "1500"}`, "mtu: a string cannot stand here, want int"},
		{`{"vlan": {}}`, "vlan: a object cannot stand here, want int"},
		{`{"name": 1}`, "name: a number cannot stand here, want string"},
		{`{"runtimeConfig": {"ips": "x"}}`, "runtimeConfig.ips: a string cannot stand here, want []string"},
		{`{"args": []}`, "args: a array cannot stand here, want an object"},
		{`[]`, "network configuration: a array cannot stand here, want an object"},
		{`{"ipam": {"type": 1}}`, "ipam.type: a number cannot stand here, want string"},
		{`{"ipam": "x"}`, "ipam: a string cannot stand here, want an object"},
	}
	for _, tt := range tests {
		t.Run(tt.conf, func(t *testing.T) {
			t.Parallel()
			var c struct {
				Shared
				VLAN int `json:"vlan"`
			}
			err := Decode([]byte(tt.conf), &c)
			if err == nil {
				_, err = c.IPAMType()
			}
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"n","ipam":{"type":"underlay"},"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/24"}]},"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c NetConf
		if Decode(data, &c) != nil {
			return
		}
		_, _ = c.IPAMType()
		_, _ = c.Previous()
		if v, err := c.Valid(); err == nil && v == nil {
			t.Fatal("valid attachments without a list")
		}
	})
}

func TestRequestedIPs(t *testing.T) {
	t.Parallel()
	var c NetConf
	c.RuntimeConfig.IPs = []string{"10.0.0.1/24", "::ffff:10.0.0.2"}
	c.Args.CNI.IPs = []string{"10.0.0.1", "fd00::1/64"}
	r := &Request{Args: Args{IPs: []string{"fd00::1", "10.0.0.3"}}}
	got, err := r.RequestedIPs(&c)
	want := "[{10.0.0.1 runtimeConfig.ips[0]} {10.0.0.2 runtimeConfig.ips[1]} {fd00::1 args.cni.ips[1]} {10.0.0.3 CNI_ARGS IP[1]}]"
	if err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	for _, bad := range []string{"10.0.0", "10.0.0.1/33", "10.0.0.1/", "fe80::1%eth0", ""} {
		c.RuntimeConfig.IPs = []string{bad}
		if got, err := r.RequestedIPs(&c); err == nil || !strings.Contains(err.Error(), "runtimeConfig.ips") {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

func TestValid(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, conf string
		want       int // -1: an error
	}{
		{"absent", `{}`, -1},
		{"null", `{"cni.dev/valid-attachments":null}`, 0},
		{"empty", `{"cni.dev/valid-attachments":[]}`, 0},
		{"two", `{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"},{"containerID":"a","ifname":"eth1"}]}`, 2},
		{"half", `{"cni.dev/valid-attachments":[{"containerID":"a"}]}`, -1},
		{"no list", `{"cni.dev/valid-attachments":"a"}`, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var c NetConf
			if err := Decode([]byte(tt.conf), &c); err != nil {
				t.Fatal(err)
			}
			got, err := c.Valid()
			if (err != nil) != (tt.want < 0) || err == nil && len(got) != tt.want {
				t.Errorf("%v, %v; want %d", got, err, tt.want)
			}
		})
	}
}

func TestPrevious(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, version, prev, want string }{ // want "" is none
		{"absent", "1.1.0", "null", ""},
		{"1.1.0", "1.1.0", `{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.7/24"}]}`, "192.0.2.7/24"},
		{"1.1.0, which it does not say", "1.1.0", `{"ips":[{"address":"192.0.2.7/24"}]}`, "192.0.2.7/24"},
		{"1.0.0, which it does not say", "1.0.0", `{"cniVersion":"","ips":[{"address":"192.0.2.7/24","version":"4"}]}`, "192.0.2.7/24"},
		{"0.4.0, which it does not say", "0.4.0", `{"ips":[{"address":"192.0.2.7/24","version":"4"}]}`, "192.0.2.7/24"},
		{"0.2.0, which it does not say", "0.2.0", `{"ip4":{"ip":"192.0.2.7/24"}}`, "192.0.2.7/24"},
		{"no version at all", "", `{"ip4":{"ip":"192.0.2.7/24"}}`, "192.0.2.7/24"},
		{"another version", "0.2.0", `{"cniVersion":"1.1.0","ips":[]}`, "error: prevResult: "},
		{"no object", "1.1.0", `7`, "error: prevResult: a number cannot stand here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := NetConf{CNIVersion: tt.version, PrevResult: json.RawMessage(tt.prev)}
			res, err := c.Previous()
			got := ""
			switch {
			case err != nil:
				got = "error: " + err.Error()
			case res != nil && len(res.IPs) == 1:
				got = res.IPs[0].Address.String()
			}
			if !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

type coded uint

func (c coded) Error() string { return "coded" }
func (c coded) CNICode() uint { return uint(c) }

func TestErrorCodes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want uint
	}{
		{"plain", errors.New("x"), types.ErrIOFailure},
		{"own", Errorf(CodeLink, "x"), CodeLink},
		{"wrapped", fmt.Errorf("a: %w", Errorf(CodeParent, "x")), CodeParent},
		{"outermost wins", Errorf(CodeNotAvailable, "a: %w", Errorf(CodeParent, "x")), CodeNotAvailable},
		{"of another package", errors.Join(errors.New("y"), coded(104)), 104},
		{"foreign plugin", fmt.Errorf("ipam: %w", types.NewError(types.ErrTryAgainLater, "full", "d")), types.ErrTryAgainLater},
		{"out of time", fmt.Errorf("lock: %w", context.DeadlineExceeded), types.ErrTryAgainLater},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var e *types.Error
			if !errors.As(toCNI(tt.err), &e) || e.Code != tt.want || e.Msg != tt.err.Error() {
				t.Errorf("%#v, want code %d", e, tt.want)
			}
		})
	}
	if toCNI(nil) != nil {
		t.Error("no error became one")
	}
}

func TestPrintResult(t *testing.T) {
	t.Parallel()
	empty := &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{{Name: "eth0"}}}
	_, n, _ := net.ParseCIDR("10.0.0.0/24")
	one := &current.Result{CNIVersion: current.ImplementedSpecVersion, IPs: []*current.IPConfig{{Address: *n}}}
	two := &current.Result{CNIVersion: current.ImplementedSpecVersion, IPs: []*current.IPConfig{{Address: *n}, {Address: *n}}}
	tests := []struct {
		name, version string
		res           *current.Result
		want          string // JSON key that has to be there
	}{
		{"no address in 0.1.0", "0.1.0", empty, "cniVersion"},
		{"no address in 0.2.0", "0.2.0", empty, "cniVersion"},
		{"no version", "", empty, "cniVersion"},
		{"address in 0.2.0", "0.2.0", one, "ip4"},
		{"two of a family in 0.2.0", "0.2.0", two, ""},
		{"two of a family, no version", "", two, ""},
		{"two of a family in 0.3.0", "0.3.0", two, "ips"},
		{"0.4.0", "0.4.0", empty, "interfaces"},
		{"1.1.0", "1.1.0", one, "ips"},
		{"unknown", "9.0.0", empty, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var b bytes.Buffer
			err := printResult(&b, tt.res, tt.version)
			if tt.want == "" {
				if err == nil || b.Len() > 0 {
					t.Fatalf("printed %s, %v", &b, err)
				}
				return
			}
			var got map[string]any
			if err != nil || json.Unmarshal(b.Bytes(), &got) != nil || got[tt.want] == nil {
				t.Errorf("%s, %v; want key %q", &b, err, tt.want)
			}
		})
	}
}
