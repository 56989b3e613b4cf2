// Package forward is a kernel door: it has the host forward packets that come
// in by some of its interfaces. What it sets, it sets for these alone, and what
// is set already it leaves, so that it costs next to nothing to ask again. It
// never takes anything back: others may have come to depend on it.
package forward

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/underlay-cni/underlay/pkg/netns"
)

// sysctls is where the kernel has them.
const sysctls = "/proc/sys"

// tree is a folder of sysctls.
type tree string

// IPv4 forwards what comes in by the interfaces.
func IPv4(names ...string) error { return tree(sysctls).ipv4(names) }

// IPv6 forwards what comes in by the interfaces. A kernel before 6.17 can do so
// for all interfaces only; those that take router advertisements are told to go
// on with it then, which a router does not do by itself.
func IPv6(names ...string) error { return tree(sysctls).ipv6(names) }

// Deaf has an interface take no router advertisements: on one that leads to a
// container they would be the container's. A kernel without IPv6 takes none.
func Deaf(name string) error {
	err := tree(sysctls).set("net/ipv6/conf/"+name+"/accept_ra", "0")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// HaveIPv6 switches IPv6 on where the host's default is off.
func HaveIPv6(name string) error {
	return tree(sysctls).set("net/ipv6/conf/"+name+"/disable_ipv6", "0")
}

func (t tree) ipv4(names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, t.set("net/ipv4/conf/"+name+"/forwarding", "1"))
	}
	return errors.Join(errs...)
}

func (t tree) ipv6(names []string) error {
	const conf = "net/ipv6/conf/"
	var errs []error
	for _, name := range names {
		err := t.set(conf+name+"/force_forwarding", "1")
		if errors.Is(err, fs.ErrNotExist) {
			return t.ipv6All()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (t tree) ipv6All() error {
	const conf = "net/ipv6/conf/"
	all, err := t.get(conf + "all/forwarding")
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the kernel has no IPv6, or it is switched off at boot (ipv6.disable=1)")
	}
	if err != nil || all != "0" {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(string(t), conf))
	if err != nil {
		return err
	}
	for _, e := range entries {
		key := conf + e.Name() + "/accept_ra"
		if name := e.Name(); name == "all" || name == "default" {
			continue
		}
		taken, err := t.get(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone by now
		}
		if err == nil && taken == "1" {
			err = t.set(key, "2")
		}
		if err != nil {
			return err
		}
	}
	return t.set(conf+"all/forwarding", "1")
}

func (t tree) get(key string) (string, error) {
	text, err := os.ReadFile(filepath.Join(string(t), key))
	return strings.TrimSpace(string(text)), err
}

func (t tree) set(key, value string) error {
	have, err := t.get(key)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	if have == value {
		return nil
	}
	if t == sysctls {
		return netns.Sysctl(key, value)
	}
	return os.WriteFile(filepath.Join(string(t), key), []byte(value), 0o600)
}
