// Package lab makes hosts without machines: each host is a network namespace
// whose eth1 is plugged into a switch, which is a bridge in a namespace of its
// own. Containers are further namespaces of a host, empty until a CNI plugin is
// run for them. The demo, the tests and the benchmarks stand on it.
//
// A lab never touches the machine's own network: all it leaves there, while it
// is up, are names under /run/netns and one folder of temporary files. Both
// carry the lab's name, so that a lab can be removed by a process that did not
// make it. Names of namespaces are "<lab>-<host>" and "<lab>-<host>-<container>".
//
// It needs root, and the programs ip (iproute2) and ping (iputils-ping). It
// leaves out file systems and processes: a container has no init.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Parent is the name of a host's interface on the switch.
const Parent = "eth1"

// bridge is the name of the bridge in the switch's namespace. Its ports are
// named like the hosts that they lead to.
const bridge = "br0"

// closing bounds the removal of a lab, which runs when its maker's context is
// already done.
const closing = 30 * time.Second

// Lab is a switch and the hosts on it.
type Lab struct {
	// Name is the first part of every namespace's name.
	Name string
	// Switch is the namespace of the bridge; its ports are named like hosts.
	Switch *Namespace
}

// Names become parts of namespace names, joined by hyphens, and names of
// switch ports, which have 15 bytes.
var validName = regexp.MustCompile(`^[a-z0-9]{1,15}$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q: want 1 to 15 of a-z, 0-9", name)
	}
	return nil
}

// New makes a lab with a switch and no hosts. The name is 1 to 15 of a-z, 0-9
// and unique on the machine; a lab that is up under it is an error.
func New(ctx context.Context, name string) (_ *Lab, err error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	there, err := namespaces(name)
	if err != nil {
		return nil, err
	}
	if len(there) > 0 {
		return nil, fmt.Errorf("lab %q: namespace %q is in the way", name, there[0])
	}
	if err := os.Mkdir(folder(name), 0o700); err != nil {
		return nil, fmt.Errorf("lab %q: %w", name, err)
	}
	l := &Lab{Name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.Switch, err = addNamespace(ctx, name+"-switch"); err != nil {
		return nil, err
	}
	// Without a querier, snooping would drop the multicast that IPv6 lives on.
	err = l.Switch.ip(ctx, "link add name "+bridge+" up type bridge mcast_snooping 0")
	return l, err
}

// Close removes the lab as Remove does.
func (l *Lab) Close() error { return Remove(l.Name) }

// Remove removes every namespace of the named lab, with the processes and
// links in them, and its folder. It goes on after an error, may be repeated,
// and reports what it could not remove. A lab that is not there is no error.
func Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()

	there, err := namespaces(name)
	errs := []error{err}
	for _, ns := range there {
		errs = append(errs, kill(ctx, ns), deleteNamespace(ctx, ns))
	}
	errs = append(errs, os.RemoveAll(folder(name)))
	if there, _ = namespaces(name); len(there) > 0 {
		errs = append(errs, fmt.Errorf("lab %q: left behind: %s", name, strings.Join(there, ", ")))
	}
	return errors.Join(errs...)
}

// folder is where a lab keeps its hosts' files.
func folder(name string) string {
	return filepath.Join(os.TempDir(), "underlay-lab-"+name)
}

// namespaces names the network namespaces of a lab.
func namespaces(lab string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(netnsDir, lab+"-*"))
	for i, path := range paths {
		paths[i] = filepath.Base(path)
	}
	return paths, err
}

// kill ends the processes of a namespace, which would keep it alive without a
// name.
func kill(ctx context.Context, ns string) error {
	out, err := run(ctx, "", "ip", "netns", "pids", ns)
	if err != nil {
		return err
	}
	for field := range strings.FieldsSeq(out) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid == os.Getpid() { // a thread of ours may be there for a moment
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %d of namespace %q: %w", pid, ns, err)
		}
	}
	return nil
}

// AddHost plugs a host into the switch. Its eth1 is up and has the addresses,
// IPv6 ones usable at once. The name is 1 to 15 of a-z, 0-9.
func (l *Lab) AddHost(ctx context.Context, name string, addrs ...netip.Prefix) (*Host, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	dir := filepath.Join(folder(l.Name), name)
	h := &Host{
		Name:    name,
		DataDir: filepath.Join(dir, "data"),
		RunDir:  filepath.Join(dir, "run"),
		cache:   filepath.Join(dir, "cache"),
		lab:     l,
		addrs:   addrs,
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("host %q: %w", name, err)
	}
	var err error
	if h.Namespace, err = addNamespace(ctx, l.Name+"-"+name); err != nil {
		return nil, err
	}
	return h, h.boot(ctx)
}
