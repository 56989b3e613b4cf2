// Package subnetenv is the file by which flannel tells others on a host which
// subnet they give out addresses of: its CNI plugin, or the unit of a container
// engine that makes a bridge with it. It is a list of shell assignments.
//
// Left out: whether the subnet is theirs to give out.
package subnetenv

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/underlay-cni/underlay/pkg/agent/runfile"
)

// Env is what the file says.
type Env struct {
	// Networks are all subnets of the pool, of both families; those that are
	// reached without masquerading.
	Networks []netip.Prefix
	// Subnets are the blocks, one of each family at most.
	Subnets []netip.Prefix
	// MTU of what sends and receives in them, in octets.
	MTU int
	// IPMasq: what leaves the network is masqueraded for the readers, who must not
	// do so themselves.
	IPMasq bool
}

// String is the text of the file. A subnet is written as its first usable
// address, which is the gateway that the readers have, and its length.
func (e Env) String() string {
	var b strings.Builder
	for _, family := range []struct {
		prefix string
		four   bool
	}{{"FLANNEL_", true}, {"FLANNEL_IPV6_", false}} {
		var networks []string
		for _, n := range e.Networks {
			if n.Addr().Is4() == family.four {
				networks = append(networks, n.String())
			}
		}
		for _, s := range e.Subnets {
			if s.Addr().Is4() == family.four {
				first := netip.PrefixFrom(s.Masked().Addr().Next(), s.Bits())
				fmt.Fprintf(&b, "%[1]sNETWORK=%[2]s\n%[1]sSUBNET=%[3]s\n", family.prefix, strings.Join(networks, ","), first)
			}
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", e.MTU, e.IPMasq)
	return b.String()
}

// Write has the file say so, and reports whether it did not before. Readers see
// the old text or the new one.
func (e Env) Write(path string) (changed bool, err error) {
	text := []byte(e.String())
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, text) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, runfile.Replace(path, text, 0o644)
}
