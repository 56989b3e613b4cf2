package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// spoils are what happens to a ledger; each returns what was done.
var spoils = []func(n *nemesis, db string) (string, error){
	func(_ *nemesis, db string) (string, error) {
		f, err := os.OpenFile(db, os.O_WRONLY, 0)
		if err != nil {
			return "", err
		}
		// Each holds the root of one of the last two transactions.
		_, err = f.WriteAt(make([]byte, 2*4096), 0)
		return "its first pages are zero", errors.Join(err, f.Close())
	},
	func(n *nemesis, db string) (string, error) {
		size := int64(n.choose.IntN(3)) * 4096
		return fmt.Sprintf("it is cut to %d octets", size), os.Truncate(db, size)
	},
	func(_ *nemesis, db string) (string, error) { return "it is removed", os.Remove(db) },
}

// damageLedger does what the refusal of an ADD says.
func damageLedger(n *nemesis, h *host) error {
	if err := h.spoil(n); err != nil {
		return err
	}
	if n.choose.IntN(2) == 0 {
		h.Start()
	}
	if err := h.refused(n); err != nil {
		return err
	}
	n.rest(500*time.Millisecond, 3*time.Second)
	if err := h.rebuild(); err != nil {
		return err
	}
	return h.unreserve(n)
}

func (h *host) spoil(n *nemesis) error {
	db := filepath.Join(h.DataDir, "ledger.db")
	i := n.choose.IntN(len(spoils) + 1)
	if i == len(spoils) {
		return h.putBack(n, db)
	}
	h.gate.Lock()
	defer h.gate.Unlock()
	h.End(syscall.SIGKILL)
	what, err := spoils[i](n, db)
	n.note(h.Name, "ledger: %s", what)
	return err
}

// putBack is somebody who takes a copy of the file for a backup: what has been
// attached since, it does not know.
func (h *host) putBack(n *nemesis, db string) error {
	h.gate.Lock()
	h.End(syscall.SIGKILL)
	old, err := os.ReadFile(db)
	h.gate.Unlock()
	if err != nil {
		return err
	}
	h.Start()
	n.rest(200*time.Millisecond, 2*time.Second)
	a, err := h.attachment(kinds[len(kinds)-1], fmt.Sprintf("wi%d", n.choose.Uint32()), n.choose)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.end(n.choose, true)
	err = within(soon, func() error { _, err := a.add(n.choose, true); return err })
	h.gate.Lock()
	defer h.gate.Unlock()
	h.End(syscall.SIGKILL)
	n.note(h.Name, "ledger: a copy of before is put back")
	return errors.Join(err, os.WriteFile(db, old, 0o600))
}

// witness is a container for a call of its own.
func (h *host) witness(n *nemesis) (*attachment, error) {
	return h.attachment(kinds[n.choose.IntN(2)], fmt.Sprintf("wi%d", n.choose.Uint32()), n.choose)
}

// refused: an ADD says what is wrong, and what to do.
func (h *host) refused(n *nemesis) error {
	h.wire.Lock() // a parent that is not there is refused, too
	defer h.wire.Unlock()
	a, err := h.witness(n)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.end(n.choose, true)
	switch o, err := a.add(n.choose, true); {
	case o == ok:
		return fmt.Errorf("ADD %s is not refused", a)
	case !strings.Contains(err.Error(), "underlayctl ledger rebuild"):
		return fmt.Errorf("ADD %s does not say what to do: %w", a, err)
	}
	return nil
}

// alone runs a program of the host with no other host's namespaces in sight, as on
// a machine of its own.
const alone = `for f in /run/netns/*; do case $f in "/run/netns/$0"|"/run/netns/$0"-*) ;; *) umount -l "$f" 2>/dev/null ;; esac; done; exec "$@"`

// rebuild makes the ledger anew, with what is attached now.
func (h *host) rebuild() error {
	// Links are told by the parents that they have now.
	h.wire.Lock()
	defer h.wire.Unlock()
	h.gate.Lock()
	defer h.gate.Unlock()
	h.End(syscall.SIGTERM)
	defer h.Start()
	argv := append([]string{"unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", alone, h.ID, "env"}, h.Env...)
	argv = append(argv, filepath.Join(bin, "underlayctl"), "--data-dir", h.DataDir, "--run-dir", h.RunDir, "ledger", "rebuild", "-o", "json")
	out, err := h.Exec(context.Background(), argv...)
	if err != nil {
		return err
	}
	var v struct {
		Found []struct {
			ContainerID string
			Addresses   []struct{ Prefix string }
		}
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return fmt.Errorf("rebuild: %w: %s", err, out)
	}
	// What was damaged is kept beside the new one, until somebody has looked at it.
	kept, err := filepath.Glob(filepath.Join(h.DataDir, "ledger.db.*.bad"))
	for _, old := range kept {
		err = errors.Join(err, os.Remove(old))
	}
	if err != nil {
		return err
	}
	found := map[string][]string{}
	for _, f := range v.Found {
		for _, a := range f.Addresses {
			addr, _, _ := strings.Cut(a.Prefix, "/")
			found[f.ContainerID] = append(found[f.ContainerID], addr)
		}
	}
	for _, a := range h.known() {
		if a.kind.others {
			a.spoilt.Store(true)
			continue
		}
		if a.broken() {
			// No link tells of it, so its addresses are free.
			h.x.holders.leave(a)
			continue
		}
		if !a.mu.TryLock() {
			continue // it is being made, or removed
		}
		for _, addr := range a.addrs {
			if !a.broken() && !slices.Contains(found[a.rt.ContainerID], addr.String()) {
				err = errors.Join(err, fmt.Errorf("the rebuilt ledger does not know %s:\n%s", a, out))
			}
		}
		a.mu.Unlock()
	}
	return err
}

// unreserve gives back what a rebuild keeps reserved, of containers whose links
// do not tell whose they are.
func (h *host) unreserve(n *nemesis) error {
	for _, a := range h.known() {
		if a.spoilt.Load() {
			a.mu.Lock()
			if h.has(a) {
				a.end(n.choose, true)
			}
			a.mu.Unlock()
		}
	}
	return within(soon, func() error {
		out, err := h.ctl("address", "list", "--state", "reserved", "-o", "json")
		if err != nil {
			return err
		}
		var list []struct{ Address string }
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, r := range list {
			addr, _, _ := strings.Cut(r.Address, "/")
			n.note(h.Name, "unreserve %s", addr)
			if _, err := h.ctl("address", "unreserve", addr); err != nil {
				return err
			}
		}
		return nil
	})
}

// ctl runs underlayctl on the host.
func (h *host) ctl(args ...string) (string, error) {
	argv := append(append([]string{"env"}, h.Env...), filepath.Join(bin, "underlayctl"), "--data-dir", h.DataDir, "--run-dir", h.RunDir)
	return h.Exec(context.Background(), append(argv, args...)...)
}
