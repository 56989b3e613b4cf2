package migrate

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/cli/live"
)

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lan")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// lines writes entries as "address container interface owner place".
func lines(dir string, entries []Entry) (out []string) {
	for _, e := range entries {
		out = append(out, strings.Join([]string{e.Addr.String(), e.ContainerID, e.IfName, e.Owner, strings.TrimPrefix(e.Place, dir+"/")}, " "))
	}
	return out
}

func TestHostLocal(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{
		"10.1.2.3": "abc\r\neth0", "10.1.2.4": "abc\n", "2001:db8::5": "def\r\nnet1\r\n", "lock": "", "last_reserved_ip.0": "10.1.2.4",
	})
	got, err := HostLocal(dir)
	want := []string{"10.1.2.3 abc eth0  10.1.2.3:1", "10.1.2.4 abc   10.1.2.4:1", "2001:db8::5 def net1  2001:db8::5:1"}
	if diff := cmp.Diff(want, lines(dir, got)); diff != "" || err != nil {
		t.Errorf("%v, entries (-want +got):\n%s", err, diff)
	}
	for name, tt := range map[string]struct{ file, content, want string }{
		"empty":        {"10.1.2.3", "", "10.1.2.3:1: the container's ID is missing"},
		"blank":        {"10.1.2.3", "a b\r\neth0", `10.1.2.3:1: the container's ID "a b" has a character`},
		"zero byte":    {"10.1.2.3", "a\x00b\r\neth0", "10.1.2.3:1: the container's ID"},
		"bad ifname":   {"10.1.2.3", "ab\r\neth\t0", "10.1.2.3:2: the interface's name"},
		"three lines":  {"10.1.2.3", "ab\r\neth0\r\nmore", "10.1.2.3:3: there is a line too many"},
		"other file":   {"notes.txt", "ab\r\neth0", "notes.txt: its name is no IP address"},
		"a zone":       {"fe80::1%eth0", "ab\r\neth0", "its name is no IP address"},
		"long":         {"10.1.2.3", strings.Repeat("x", 5000), "10.1.2.3: it is no file of host-local's"},
		"other folder": {"net/10.1.2.3", "ab\r\neth0", "net: it is a folder; name the folder of one network"},
	} {
		_, err := HostLocal(folder(t, map[string]string{tt.file: tt.content, "10.1.2.9": "ok\r\neth0"}))
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := HostLocal(dir + "/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

const one = `{
  "apiVersion": "whereabouts.cni.cncf.io/v1alpha1",
  "kind": "IPPool",
  "metadata": {"name": "10.1.2.0-24"},
  "spec": {
    "allocations": {
      "7": {"id": "abc", "podref": "shop/web", "ifname": "net1"},
      "255": {
        "id": "def"
      }
    },
    "range": "10.1.2.0/24"
  }
}`

func TestWhereabouts(t *testing.T) {
	t.Parallel()
	six := `{"kind":"IPPool","metadata":{"name":"six"},"spec":{"range":"2001:db8::/64","allocations":{
	"9223372036854775807":{"id":"abc","podref":"shop/web"}}}}`
	list := `{"kind":"List","items":[` + one + ",\n" + six + "]}"
	for name, tt := range map[string]struct {
		doc   string
		pools []string
		want  []string
	}{
		"one":       {one, nil, []string{"10.1.2.7 abc net1 shop/web f:7", "10.1.2.255 def   f:8"}},
		"by name":   {one, []string{"10.1.2.0-24"}, []string{"10.1.2.7 abc net1 shop/web f:7", "10.1.2.255 def   f:8"}},
		"of a list": {list, []string{"six"}, []string{"2001:db8::7fff:ffff:ffff:ffff abc  shop/web f:16"}},
		"both":      {list, []string{"six", "10.1.2.0-24"}, []string{"10.1.2.7 abc net1 shop/web f:7", "10.1.2.255 def   f:8", "2001:db8::7fff:ffff:ffff:ffff abc  shop/web f:16"}},
		"none":      {`{"kind":"IPPool","spec":{"range":"10.0.0.0/8"}}`, nil, nil},
	} {
		got, err := Whereabouts("f", []byte(tt.doc), tt.pools)
		if diff := cmp.Diff(tt.want, lines("", got)); diff != "" || err != nil {
			t.Errorf("%s: %v, entries (-want +got):\n%s", name, err, diff)
		}
	}
	replaced := func(old, now string) string { return strings.Replace(one, old, now, 1) }
	for name, tt := range map[string]struct {
		doc   string
		pools []string
		want  string
	}{
		"no JSON":         {replaced(`"spec": {`, `"spec" {`), nil, "f:5: invalid character"},
		"cut off":         {one[:120], nil, "f:5: unexpected end"},
		"another kind":    {replaced("IPPool", "Pod"), nil, `f:3: "Pod" is no IPPool`},
		"a number as ID":  {replaced(`"abc"`, "7"), nil, "f:7: json: cannot unmarshal number"},
		"no ID":           {replaced(`"id": "def"`, `"podref": "a/b"`), nil, "f:8: id is missing"},
		"bad podref":      {replaced("shop/web", "shop web"), nil, "f:7: podref"},
		"bad offset":      {replaced(`"7"`, `"-7"`), nil, `f:7: "-7" is no number`},
		"outside":         {replaced(`"255"`, `"256"`), nil, "f:8: address number 256 is outside of 10.1.2.0/24"},
		"far outside":     {replaced(`"255"`, `"9223372036854775807"`), nil, "f:8: address number 9223372036854775807 is outside"},
		"bad range":       {replaced("10.1.2.0/24", "10.1.2.0"), nil, "f:12: range: "},
		"unknown pool":    {one, []string{"other"}, `f: it has no IPPool "other"`},
		"two, none named": {list, nil, "f: it has 2 IPPools, and one network is to take them in; choose with --ippool: 10.1.2.0-24, six"},
		"an empty list":   {`{"kind":"List","items":[]}`, nil, "f: it has 0 IPPools"},
	} {
		_, err := Whereabouts("f", []byte(tt.doc), tt.pools)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
}

func carrier(ns, ifName, prefix string) live.Carrier {
	return live.Carrier{Netns: ipam.Netns{Path: "/run/netns/" + ns, Dev: 4, Inode: uint64(len(ns))}, IfName: ifName, MAC: "02:00:00:00:00:01",
		Address: ipam.Address{Prefix: netip.MustParsePrefix(prefix)}}
}

func carriers(list ...live.Carrier) map[netip.Addr][]live.Carrier {
	out := map[netip.Addr][]live.Carrier{}
	for _, c := range list {
		a := c.Address.Prefix.Addr()
		out[a] = append(out[a], c)
	}
	return out
}

func entry(addr, id, ifName string) Entry {
	return Entry{Addr: netip.MustParseAddr(addr), ContainerID: id, IfName: ifName, Place: "f:" + addr}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	c := Config{Manager: "host-local", Network: "lan", Carriers: carriers(
		carrier("a", "eth0", "10.1.2.3/24"), carrier("a", "eth0", "2001:db8::3/64"), carrier("b", "eth0", "10.1.2.4/24"),
		carrier("b", "eth0", "10.1.2.5/24"), carrier("cc", "eth0", "10.1.2.5/24"), carrier("a", "lo0", "10.1.2.7/24"),
		carrier("bbb", "eth0", "10.1.2.8/24"))}
	entries := []Entry{
		entry("2001:db8::3", "abc", "eth0"), entry("10.1.2.3", "abc", "eth0"), // alive, with two addresses
		entry("10.1.2.4", "old", ""),     // alive, of a version that knew no interface
		entry("10.1.2.5", "two", "eth0"), // in use twice
		entry("10.1.2.6", "dead", "eth0"),
		entry("10.1.2.7", "other", "eth0"), // another interface has it
		entry("10.1.2.8", "old", ""),       // the same attachment, elsewhere
		entry("10.9.9.9", "dead", "eth0"),
	}
	entries[4].Owner = "shop/web"
	show := func(c Config) (out []string) {
		found, rows, err := Plan(c, entries)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			out = append(out, fmt.Sprintf("%s %s", r.Address, r.Becomes))
		}
		for _, f := range found {
			var addrs []string
			for _, a := range f.Addresses {
				addrs = append(addrs, a.Prefix.String())
			}
			out = append(out, fmt.Sprintf("%s %s %s%s", strings.Join(addrs, ","), f.Netns.Path, f.Attachment, f.Reason))
		}
		return out
	}
	held := []string{
		"10.1.2.3/24,2001:db8::3/64 /run/netns/a lan/abc/eth0",
		"10.1.2.4/24 /run/netns/b lan/old/eth0",
	}
	twice := []string{
		"10.1.2.5/24  //host-local gave it to container two, and in use by eth0 in /run/netns/b (f:10.1.2.5)",
		"10.1.2.6/24  //host-local gave it to pod shop/web (container dead), which is not running here (f:10.1.2.6)",
		"10.1.2.7/24  //host-local gave it to container other, which is not running here (f:10.1.2.7)",
		"10.1.2.8/24  //host-local gave it to container old, and in use by eth0 in /run/netns/bbb (f:10.1.2.8)",
		"10.9.9.9/32  //host-local gave it to container dead, which is not running here (f:10.9.9.9)",
	}
	want := append([]string{"10.1.2.3/24 held", "10.1.2.4/24 held", "10.1.2.5/24 reserved", "10.1.2.6/24 reserved", "10.1.2.7/24 reserved",
		"10.1.2.8/24 reserved", "10.9.9.9/32 reserved", "2001:db8::3/64 held"}, append(held, twice...)...)
	if diff := cmp.Diff(want, show(c)); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	c.DropDead = true
	want = append([]string{"10.1.2.3/24 held", "10.1.2.4/24 held", "10.1.2.5/24 reserved", "10.1.2.6/24 dropped", "10.1.2.7/24 dropped",
		"10.1.2.8/24 reserved", "10.9.9.9/32 dropped", "2001:db8::3/64 held"}, append(held, twice[0], twice[3])...)
	if diff := cmp.Diff(want, show(c)); diff != "" {
		t.Errorf("without the dead (-want +got):\n%s", diff)
	}
	// A pool that is known says the order of addresses, and their subnets.
	r := func(subnet, first, last string) ipam.RangeSet {
		return ipam.RangeSet{{Subnet: netip.MustParsePrefix(subnet), Interval: ipam.Interval{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}}}
	}
	c.DropDead = false
	c.Known.Pools = []ipam.Pool{{Name: "lan", UUID: "u"}, {Name: "lan", Sets: []ipam.RangeSet{r("2001:db8::/64", "2001:db8::1", "2001:db8::f"), r("10.0.0.0/8", "10.0.0.1", "10.10.0.0")}}}
	got := strings.Join(show(c), "\n")
	for _, want := range []string{"2001:db8::3/64,10.1.2.3/24 /run/netns/a", "10.9.9.9/8 reserved"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr("10.1.2.3")
	alive := carriers(carrier("a", "eth0", "10.1.2.3/24"))
	for name, tt := range map[string]struct {
		known   Known
		entries []Entry
		want    string
	}{
		"twice":    {Known{}, []Entry{entry("10.1.2.3", "a", "eth0"), {Addr: addr, ContainerID: "b", Place: "g:7"}}, "g:7: address 10.1.2.3 is in f:10.1.2.3 too"},
		"held":     {Known{Records: map[netip.Addr]ipam.Record{addr: {State: ipam.Held}}}, []Entry{entry("10.1.2.3", "a", "eth0")}, "f:10.1.2.3: address 10.1.2.3 is in the ledger already: it is held"},
		"attached": {Known{Attachments: map[ipam.Attachment]bool{{Network: "lan", ContainerID: "a", IfName: "eth0"}: true}}, []Entry{entry("10.1.2.3", "a", "eth0")}, "f:10.1.2.3: lan/a/eth0 is in the ledger already"},
	} {
		_, _, err := Plan(Config{Network: "lan", Known: tt.known, Carriers: alive}, tt.entries)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzHostLocal(f *testing.F) {
	f.Add([]byte("abc\r\neth0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseHostLocal("f", b)
		if err == nil && (e.ContainerID == "" || strings.ContainsAny(e.ContainerID+e.IfName, "\x00\r\n ")) {
			t.Errorf("%q is %+v", b, e)
		}
	})
}

func FuzzWhereabouts(f *testing.F) {
	f.Add([]byte(one))
	f.Add([]byte(`{"kind":"List","items":[` + one + "]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := Whereabouts("f", b, nil)
		for _, e := range entries {
			if err != nil || !e.Subnet.Contains(e.Addr) || e.ContainerID == "" {
				t.Errorf("%+v, %v", e, err)
			}
		}
	})
}
