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

// tree is a folder of sysctls, and what was changed in it.
type tree struct {
	root    string
	changed []string
}

// By forwards what comes in by an interface: IPv4 and, with six, IPv6 as IPv6
// does. Changed are the keys that had another value, for people.
func By(name string, six bool) (changed []string, err error) {
	t := tree{root: sysctls}
	err = t.ipv4([]string{name})
	if six {
		err = errors.Join(err, t.ipv6([]string{name}))
	}
	return t.changed, err
}

// IPv4 forwards what comes in by the interfaces.
func IPv4(names ...string) error { return (&tree{root: sysctls}).ipv4(names) }

// IPv6 forwards what comes in by the interfaces. A kernel before 6.17 can do so
// for all interfaces only; those that take router advertisements are told to go
// on with it then, which a router does not do by itself.
func IPv6(names ...string) error { return (&tree{root: sysctls}).ipv6(names) }

// Deaf has an interface take no router advertisements: on one that leads to a
// container they would be the container's. A kernel without IPv6 takes none.
func Deaf(name string) error {
	err := (&tree{root: sysctls}).set("net/ipv6/conf/"+name+"/accept_ra", "0")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Strict drops IPv4 packets that come in by an interface from a source which is not
// reached by it: what a container sends by its own is then of its own address. The
// kernel takes the laxer of this and net.ipv4.conf.all.rp_filter, and has nothing of
// the kind for IPv6.
func Strict(name string) error {
	return (&tree{root: sysctls}).set("net/ipv4/conf/"+name+"/rp_filter", "1")
}

// HaveIPv6 switches IPv6 on where the host's default is off.
func HaveIPv6(name string) error {
	return (&tree{root: sysctls}).set("net/ipv6/conf/"+name+"/disable_ipv6", "0")
}

func (t *tree) ipv4(names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, t.set("net/ipv4/conf/"+name+"/forwarding", "1"))
	}
	return errors.Join(errs...)
}

func (t *tree) ipv6(names []string) error {
	const conf, key = "net/ipv6/conf/", "/force_forwarding"
	// Of an interface that is gone, or whose MTU is too small for IPv6, there is
	// nothing either: that is no reason to forward between all others.
	if _, err := t.get(conf + "default" + key); errors.Is(err, fs.ErrNotExist) {
		return t.ipv6All()
	}
	var errs []error
	for _, name := range names {
		err := t.set(conf+name+key, "1")
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%q is gone, or has no IPv6 (for which the MTU has to be 1280 at least): %w", name, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (t *tree) ipv6All() error {
	const conf = "net/ipv6/conf/"
	all, err := t.get(conf + "all/forwarding")
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the kernel has no IPv6, or it is switched off at boot (ipv6.disable=1)")
	}
	if err != nil || all != "0" {
		return err
	}
	keys, err := filepath.Glob(filepath.Join(t.root, conf, "*", "accept_ra"))
	if err != nil {
		return err
	}
	for _, path := range keys {
		name := filepath.Base(filepath.Dir(path))
		if name == "all" || name == "default" {
			continue
		}
		key := conf + name + "/accept_ra"
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

func (t *tree) get(key string) (string, error) {
	text, err := os.ReadFile(filepath.Join(t.root, key))
	return strings.TrimSpace(string(text)), err
}

func (t *tree) set(key, value string) error {
	have, err := t.get(key)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	if have == value {
		return nil
	}
	t.changed = append(t.changed, key+"="+value)
	if t.root == sysctls {
		return netns.Sysctl(key, value)
	}
	return os.WriteFile(filepath.Join(t.root, key), []byte(value), 0o600)
}
