package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// Forward has the kernel pass packets on that come in by an interface: IPv4's
// and, with six, IPv6's. Changed are the keys that were another value, for
// people. A kernel before 6.17 forwards IPv6 for all interfaces or none; there
// those that listen to router advertisements are told to go on doing so, which
// a router would not.
func (h *Host) Forward(dev string, six bool) (changed []string, err error) {
	err = h.do(func() error {
		set := func(key, value string) error {
			did, err := setKey(key, value)
			if did {
				changed = append(changed, key+"="+value)
			}
			return err
		}
		err := set("net/ipv4/conf/"+dev+"/forwarding", "1")
		if !six {
			return err
		}
		force := "net/ipv6/conf/" + dev + "/force_forwarding"
		if _, serr := os.Stat("/proc/sys/" + force); serr == nil {
			return errors.Join(err, set(force, "1"))
		}
		if _, serr := os.Stat("/proc/sys/net/ipv6/conf/all/forwarding"); serr != nil {
			return err // there is no IPv6
		}
		listeners, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
		for _, path := range listeners {
			if value, rerr := os.ReadFile(path); rerr == nil && strings.TrimSpace(string(value)) == "1" && !shared(path) {
				err = errors.Join(err, set(strings.TrimPrefix(path, "/proc/sys/"), "2"))
			}
		}
		return errors.Join(err, set("net/ipv6/conf/all/forwarding", "1"))
	})
	if err != nil {
		err = fmt.Errorf("forward from %q: %w", dev, err)
	}
	return changed, err
}

// shared reports whether a key is that of no interface.
func shared(path string) bool {
	dev := filepath.Base(filepath.Dir(path))
	return dev == "all" || dev == "default" || dev == "lo"
}

// setKey writes a key that has another value.
func setKey(key, value string) (changed bool, err error) {
	now, err := os.ReadFile("/proc/sys/" + key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("%s: the interface is gone, or the kernel has no such key", key)
	case err != nil:
		return false, err
	case strings.TrimSpace(string(now)) == value:
		return false, nil
	}
	return true, netns.Sysctl(key, value)
}
