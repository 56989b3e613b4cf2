package e2e_test

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"
)

// Each verb at each version of the specification, for the main plugin and for
// the IPAM plugin on its own. Where a version lacks the verb the answer is
// code 1, and nothing changes.
func TestVersions(t *testing.T) {
	t.Parallel()
	tests := []struct {
		version string
		check   bool // it has CHECK
		gc      bool // it has GC and STATUS
	}{
		{version: "0.1.0"},
		{version: "0.2.0"},
		{version: "0.3.0"},
		{version: "0.3.1"},
		{version: "0.4.0", check: true},
		{version: "1.0.0", check: true},
		{version: "1.1.0", check: true, gc: true},
	}
	for _, plugin := range []string{"macvlan", "underlay"} {
		for _, test := range tests {
			t.Run(plugin+" "+test.version, func(t *testing.T) {
				t.Parallel()
				h := oneHost(t)
				n, rt := container(t, h, "c1")
				do := func(verb string, more keys) ([]byte, error) {
					all := keys{"cniVersion": test.version}
					maps.Copy(all, more)
					return call{verb: verb, plugin: plugin, rt: rt}.run(t, h, placed(t, h, all))
				}

				said, err := do("VERSION", nil)
				wantOK(t, "VERSION", err)
				info, err := new(version.PluginDecoder).Decode(said)
				if err != nil || !slices.Contains(info.SupportedVersions(), test.version) {
					t.Errorf("VERSION: %s, %v; want %s among them", said, err, test.version)
				}

				status := func() {
					_, err := do("STATUS", nil)
					wantAt(t, "STATUS", test.gc, err)
				}
				status()

				printed, err := do("ADD", nil)
				wantOK(t, "ADD", err)
				wantResult(t, printed, test.version)
				before := stateOf(t, h, n)
				if len(before.Books.Addresses) != 2 {
					t.Errorf("%d addresses in the ledger after ADD, want 2", len(before.Books.Addresses))
				}

				again, err := do("ADD", nil)
				wantOK(t, "ADD again", err)
				if diff := cmp.Diff(string(printed), string(again)); diff != "" {
					t.Errorf("ADD again (-first +second):\n%s", diff)
				}

				_, err = do("CHECK", keys{"prevResult": json.RawMessage(printed)})
				wantAt(t, "CHECK", test.check, err)
				_, err = do("GC", keys{"cni.dev/valid-attachments": []types.GCAttachment{{ContainerID: rt.ContainerID, IfName: rt.IfName}}})
				wantAt(t, "GC", test.gc, err)
				status()
				if held := readBooks(t, h).held()[rt.ContainerID]; len(held) != 2 {
					t.Errorf("holds %v before DEL, want 2 addresses", held)
				}

				_, err = do("DEL", keys{"prevResult": json.RawMessage(printed)})
				wantOK(t, "DEL", err)
				wantNoLink(t, n)
				wantNothingHeld(t, h)
			})
		}
	}
}

// wantAt: success if the version has the verb, else code 1.
func wantAt(t *testing.T, verb string, has bool, err error) {
	t.Helper()
	if has {
		wantOK(t, verb, err)
	} else {
		wantError(t, err, codeVersion, verb)
	}
}

// wantResult: one document of the version, with both addresses.
func wantResult(t *testing.T, printed []byte, want string) {
	t.Helper()
	raw, err := version.NewResult(want, printed)
	if err != nil {
		t.Fatalf("result %s: %v", printed, err)
	}
	if raw.Version() != want {
		t.Errorf("result is of version %q, want %q", raw.Version(), want)
	}
	res, err := current.NewResultFromResult(raw)
	if err != nil {
		t.Fatalf("result %s: %v", printed, err)
	}
	var got []string
	for _, ip := range res.IPs {
		got = append(got, ip.Address.String())
	}
	if diff := cmp.Diff([]string{"192.0.2.10/24", "2001:db8::10/64"}, got); diff != "" {
		t.Errorf("addresses of the result (-want +got):\n%s", diff)
	}
}

// A configuration without a version is one of 0.1.0, the specification says.
func TestVersionMissing(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	n, rt := container(t, h, "c1")
	conf := placed(t, h, keys{"cniVersion": ""})
	printed, err := call{verb: "ADD", rt: rt}.run(t, h, conf)
	wantOK(t, "ADD", err)
	wantResult(t, printed, "0.1.0")
	_, err = call{verb: "DEL", rt: rt}.run(t, h, conf)
	wantOK(t, "DEL", err)
	wantNoLink(t, n)
	wantNothingHeld(t, h)
}

// An unknown version changes nothing.
func TestVersionUnknown(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	n, rt := container(t, h, "c1")
	before := stateOf(t, h, n)
	for _, v := range []string{"2.0.0", "1.2.0", "0.5.0"} {
		_, err := call{verb: "ADD", rt: rt}.run(t, h, placed(t, h, keys{"cniVersion": v}))
		wantError(t, err, codeVersion, v)
	}
	wantState(t, before, stateOf(t, h, n))
}

// What a result of 1.1.0 says beside addresses.
func TestResult(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	n, rt := container(t, h, "c1")
	result, err := h.CNI(ours).Add(t.Context(), lan(t, h, keys{"mtu": 1400, "dns": keys{"nameservers": []string{"192.0.2.53"}}}), rt)
	if err != nil {
		t.Fatal(err)
	}
	link := mustLink(t, n, "eth0")
	want := []*current.Interface{{Name: "eth0", Mac: link.MAC, Mtu: 1400, Sandbox: rt.NetNS}}
	if diff := cmp.Diff(want, result.Interfaces); diff != "" {
		t.Errorf("interfaces (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"192.0.2.53"}, result.DNS.Nameservers); diff != "" {
		t.Errorf("name servers (-want +got):\n%s", diff)
	}
	for i, gateway := range []string{"192.0.2.1", "2001:db8::1"} {
		ip := result.IPs[i]
		if ip.Interface == nil || *ip.Interface != 0 || ip.Gateway.String() != gateway {
			t.Errorf("address %d is %+v, want interface 0 and gateway %s", i, ip, gateway)
		}
	}
	for _, p := range []string{"192.0.2.10/24", "2001:db8::10/64"} {
		if !slices.Contains(link.Addrs, netip.MustParsePrefix(p)) {
			t.Errorf("eth0 has %v, not %s", link.Addrs, p)
		}
	}
	if link.MTU != 1400 || !link.Up || link.Kind != "macvlan" {
		t.Errorf("eth0 is %+v", link)
	}
}
