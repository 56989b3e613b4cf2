package e2e_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

// Three ways to ask for addresses, in the order in which they count; range
// sets that are not asked for choose freely.
func TestRequestedAddresses(t *testing.T) {
	t.Parallel()
	capable := keys{"capabilities": keys{"ips": true, "mac": true}}
	tests := []struct {
		name string
		conf keys
		rt   libcni.RuntimeConf
		want []string
	}{
		{name: "none", want: []string{"192.0.2.10", "2001:db8::10"}},
		{name: "runtimeConfig", conf: capable,
			rt:   libcni.RuntimeConf{CapabilityArgs: map[string]any{"ips": []string{"192.0.2.15", "2001:db8::16"}}},
			want: []string{"192.0.2.15", "2001:db8::16"}},
		{name: "runtimeConfig, other order and with lengths", conf: capable,
			rt:   libcni.RuntimeConf{CapabilityArgs: map[string]any{"ips": []string{"2001:db8::16/64", "192.0.2.15/24"}}},
			want: []string{"192.0.2.15", "2001:db8::16"}},
		{name: "runtimeConfig, one family", conf: capable,
			rt:   libcni.RuntimeConf{CapabilityArgs: map[string]any{"ips": []string{"2001:db8::16"}}},
			want: []string{"192.0.2.10", "2001:db8::16"}},
		{name: "runtimeConfig without the capability",
			rt:   libcni.RuntimeConf{CapabilityArgs: map[string]any{"ips": []string{"192.0.2.15"}}},
			want: []string{"192.0.2.10", "2001:db8::10"}},
		{name: "args.cni.ips", conf: keys{"args": keys{"cni": keys{"ips": []string{"192.0.2.17", "2001:db8::17"}}}},
			want: []string{"192.0.2.17", "2001:db8::17"}},
		{name: "CNI_ARGS IP", rt: libcni.RuntimeConf{Args: [][2]string{{"IP", "192.0.2.18"}}},
			want: []string{"192.0.2.18", "2001:db8::10"}},
		{name: "CNI_ARGS IP with both families, as Multus sends it",
			rt: libcni.RuntimeConf{Args: [][2]string{{"IgnoreUnknown", "true"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "p"},
				{"K8S_POD_INFRA_CONTAINER_ID", "x=y"}, {"IP", "192.0.2.18,2001:db8::18"}}},
			want: []string{"192.0.2.18", "2001:db8::18"}},
		{name: "the same, three times", conf: keys{"capabilities": keys{"ips": true}, "args": keys{"cni": keys{"ips": []string{"192.0.2.19"}}}},
			rt: libcni.RuntimeConf{CapabilityArgs: map[string]any{"ips": []string{"192.0.2.19/24"}},
				Args: [][2]string{{"IP", "192.0.2.19"}}},
			want: []string{"192.0.2.19", "2001:db8::10"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			a := &attachment{t: t, cni: h.CNI(ours), conf: lan(t, h, test.conf)}
			a.Namespace, a.rt = container(t, h, "c1")
			a.rt.Args, a.rt.CapabilityArgs = test.rt.Args, test.rt.CapabilityArgs
			for _, nth := range []string{"first", "repeated"} {
				a.add()
				if diff := cmp.Diff(test.want, texts(a.addrs)); diff != "" {
					t.Errorf("%s ADD (-want +got):\n%s", nth, diff)
				}
			}
			a.del()
			// The last owner has its address back at once, though it rests.
			a.add()
			if diff := cmp.Diff(test.want, texts(a.addrs)); diff != "" {
				t.Errorf("ADD after DEL (-want +got):\n%s", diff)
			}
		})
	}
}

func texts(addrs []netip.Addr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// Addresses stay apart and, while there are others, are not given to the next
// container just after they were released.
func TestAddressesRest(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	c1, c2 := attach(t, h, "c1", lan(t, h, nil)), attach(t, h, "c2", lan(t, h, nil))
	c1.del()
	c3 := attach(t, h, "c3", lan(t, h, nil))
	got := [][]string{texts(c1.addrs), texts(c2.addrs), texts(c3.addrs)}
	want := [][]string{{"192.0.2.10", "2001:db8::10"}, {"192.0.2.11", "2001:db8::11"}, {"192.0.2.12", "2001:db8::12"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// A pool is used to its last address, and an address that rests is given out
// when it is the only one.
func TestPoolToTheLast(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	cni, conf := h.CNI(ours), lan(t, h, keys{"ipam": oneAddress("")})
	_, rt1 := container(t, h, "c1")
	_, rt2 := container(t, h, "c2")
	add := func(rt *libcni.RuntimeConf) error {
		_, err := cni.Add(t.Context(), conf, rt)
		return err
	}
	wantOK(t, "ADD c1", add(rt1))
	wantError(t, add(rt2), codeTryAgain, `"lan"`, "192.0.2.10", "1 usable, 1 held, 0 cooling")
	wantOK(t, "DEL c1", cni.Del(t.Context(), conf, rt1))
	wantOK(t, "ADD c2", add(rt2))
	wantError(t, add(rt1), codeTryAgain, "1 usable, 1 held")
}

// Two containers on two hosts, both families; the addresses are the
// containers' own, and exclusions and the gateway are nobody's.
func TestDualStack(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	conf := keys{"ipam": json.RawMessage(`{"type": "underlay", "ranges": [
		[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.30", "rangeEnd": "192.0.2.39", "gateway": "192.0.2.30", "exclude": ["192.0.2.31-192.0.2.32"]}],
		[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::30", "gateway": "2001:db8::30", "exclude": ["2001:db8::30/126"]}]]}`)}
	c1 := attach(t, b.h1, "c1", lan(t, b.h1, conf))
	if diff := cmp.Diff([]string{"192.0.2.33", "2001:db8::34"}, texts(c1.addrs)); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	c2 := attach(t, b.h2, "c2", lan(t, b.h2, nil))
	meet(t, c1.station, c2.station)
}
