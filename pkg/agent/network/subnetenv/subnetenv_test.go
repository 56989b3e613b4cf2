package subnetenv

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestString(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		env  Env
		want string
	}{
		{"IPv4", Env{Networks: prefixes("10.5.0.0/16"), Subnets: prefixes("10.5.0.64/26"), MTU: 1500, IPMasq: true},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.0.65/26\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n"},
		{"IPv6", Env{Networks: prefixes("2001:db8:5::/112"), Subnets: prefixes("2001:db8:5::40/122"), MTU: 1430},
			"FLANNEL_IPV6_NETWORK=2001:db8:5::/112\nFLANNEL_IPV6_SUBNET=2001:db8:5::41/122\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"},
		{"both, of several subnets", Env{Networks: prefixes("10.5.0.0/16", "2001:db8:5::/112", "10.7.0.0/16"), Subnets: prefixes("10.7.0.0/24", "2001:db8:5::/122"), MTU: 1450},
			"FLANNEL_NETWORK=10.5.0.0/16,10.7.0.0/16\nFLANNEL_SUBNET=10.7.0.1/24\nFLANNEL_IPV6_NETWORK=2001:db8:5::/112\nFLANNEL_IPV6_SUBNET=2001:db8:5::1/122\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"},
		{"a family of which nothing is lent", Env{Networks: prefixes("10.5.0.0/16", "2001:db8:5::/112"), Subnets: prefixes("10.5.0.0/26"), MTU: 1500},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.0.1/26\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"},
	}
	for _, tt := range tests {
		if got := tt.env.String(); got != tt.want {
			t.Errorf("%s: got\n%swant\n%s", tt.name, got, tt.want)
		}
	}
}

// TestWrite: a shell reads it, as anybody does; it is written where it is not as it
// has to be, and nowhere else.
func TestWrite(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "flannel", "subnet.env")
	e := Env{Networks: prefixes("10.5.0.0/16", "2001:db8:5::/112"), Subnets: prefixes("10.5.0.64/26", "2001:db8:5::40/122"), MTU: 1500, IPMasq: true}
	write := func(when string, want bool) {
		t.Helper()
		if changed, err := e.Write(path); changed != want || err != nil {
			t.Errorf("%s: written %t, %v", when, changed, err)
		}
	}
	write("at first", true)
	write("again", false)
	out, err := exec.Command("sh", "-c", `. "$0" && echo "$FLANNEL_NETWORK $FLANNEL_SUBNET $FLANNEL_IPV6_NETWORK $FLANNEL_IPV6_SUBNET $FLANNEL_MTU $FLANNEL_IPMASQ"`, path).CombinedOutput()
	if want := "10.5.0.0/16 10.5.0.65/26 2001:db8:5::/112 2001:db8:5::41/122 1500 true\n"; err != nil || string(out) != want {
		t.Errorf("a shell reads %q, %v, want %q", out, err, want)
	}
	if s, err := os.Stat(path); err != nil || s.Mode() != 0o644 {
		t.Errorf("mode %v, %v", s.Mode(), err)
	}
	if err := os.Truncate(path, 3); err != nil {
		t.Fatal(err)
	}
	write("cut off", true)
	e.MTU = 1400
	write("with another MTU", true)
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "MTU=1400\n") {
		t.Errorf("%q, %v", text, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside it: %v, %v", entries, err)
	}
	// Where there is no way to write it is an error, and nothing is left.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if changed, err := e.Write(path); changed || err == nil {
		t.Errorf("in the place of a folder: written %t, %v", changed, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside a folder: %v, %v", entries, err)
	}
}
