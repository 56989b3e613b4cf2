package static

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/underlay-cni/underlay/pkg/fault"
	"github.com/underlay-cni/underlay/pkg/flock"
)

// state is what a file holds.
type state struct {
	Version int    `json:"v"`
	Boot    string `json:"boot"`
	Network
	Attachments []Attachment `json:"attachments"`
}

const version = 1

// Beside the files of networks there is a lock, and while the kernel may not be
// as they tell, a mark that says so.
const (
	suffix   = ".json"
	lockName = "lock"
	markName = "unapplied"
)

func (h Host) file(network string) string { return filepath.Join(h.Dir, network+suffix) }
func (h Host) mark() string               { return filepath.Join(h.Dir, markName) }

// knows reports whether there is anything to be removed of a network.
func (h Host) knows(network string) bool {
	for _, path := range []string{h.file(network), h.mark()} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// update has change alter the state of a network, and makes files and kernel
// what all of them tell then. Routes that somebody has deleted come back also
// where change reports that there is nothing to write.
func (h Host) update(ctx context.Context, network string, change func(map[string]*state) bool) error {
	unlock, err := h.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := h.read()
	if err != nil {
		return err
	}
	before := rulesOf(all)
	changed := change(all)
	after := rulesOf(all)
	_, err = os.Stat(h.mark())
	marked := err == nil
	if before != after && !marked {
		if err := os.WriteFile(h.mark(), nil, 0o600); err != nil {
			return err
		}
		marked = true
	}
	fault.Point("static.marked")
	if changed {
		if err := h.write(network, all[network]); err != nil {
			return err
		}
		fault.Point("static.written")
	}
	masquerade := all[network] != nil && all[network].Masquerade
	err = errors.Join(h.applyRoutes(all, network), h.applyRules(ctx, after, marked, masquerade))
	fault.Point("static.applied")
	if err == nil && marked {
		err = os.Remove(h.mark())
	}
	return err
}

func (h Host) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(h.Dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(ctx, int(f.Fd()), false); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// read reads all networks of this boot.
func (h Host) read() (map[string]*state, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	all := make(map[string]*state)
	paths, err := filepath.Glob(filepath.Join(h.Dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // without the lock it may go at any time
		}
		if err != nil {
			return nil, err
		}
		if len(text) == 0 {
			continue // a loss of power has taken what was never synced, so it is of another boot
		}
		s := &state{}
		if err := json.Unmarshal(text, s); err != nil {
			return nil, fmt.Errorf("read %q: %w; remove it, and the next ADD of the network writes it anew", path, err)
		}
		if s.Version > version {
			return nil, fmt.Errorf("read %q: it is of version %d, and this plugin knows %d", path, s.Version, version)
		}
		if s.Boot == boot && path == h.file(s.Name) {
			all[s.Name] = s
		}
	}
	return all, nil
}

// write replaces the file of a network; nil removes it. It is not synced: after
// a loss of power it would tell of another boot.
func (h Host) write(network string, s *state) error {
	path := h.file(network)
	if s == nil {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var err error
	if s.Boot, err = bootID(); err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temporary := filepath.Join(h.Dir, "."+network)
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}
