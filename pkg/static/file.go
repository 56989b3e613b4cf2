package static

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
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
	// A network's file before it gets its name begins so, in the folder.
	temporary = "/."
)

func (h Host) file(network string) string { return filepath.Join(h.Dir, network+suffix) }
func (h Host) mark() string               { return filepath.Join(h.Dir, markName) }

// knows reports whether there is anything to be removed of a network.
func (h Host) knows(network string) bool {
	for _, path := range []string{h.file(network), h.mark(), h.Dir + temporary + network} {
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
	all, odd, err := h.read()
	if err == nil {
		err = odd[network]
	}
	if err != nil {
		return err
	}
	// Of a network whose file cannot be read nobody knows what it needs: nothing is
	// taken away but what the network has told of that is being changed.
	before, partial := rulesOf(all), len(odd) > 0
	told := make(map[netip.Prefix]bool)
	if s := all[network]; s != nil {
		for _, p := range s.Peers {
			told[p.Prefix] = true
		}
	}
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
	if !partial {
		told = nil
	}
	err = errors.Join(h.applyRoutes(all, network, told), h.applyRules(ctx, after, marked, partial, masquerade))
	fault.Point("static.applied")
	if err == nil && marked && !partial {
		err = os.Remove(h.mark())
	}
	return err
}

func (h Host) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return nil, err
	}
	return flock.File(ctx, filepath.Join(h.Dir, lockName))
}

// read reads all networks of this boot; odd says of which the file makes no sense.
func (h Host) read() (all map[string]*state, odd map[string]error, err error) {
	boot, err := fault.Boot()
	if err != nil {
		return nil, nil, err
	}
	all, odd = make(map[string]*state), make(map[string]error)
	paths, err := filepath.Glob(filepath.Join(h.Dir, "*"+suffix))
	if err != nil {
		return nil, nil, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // without the lock it may go at any time
		}
		if len(text) == 0 && err == nil {
			continue // a loss of power has taken what was never synced, so it is of another boot
		}
		s := &state{}
		if err == nil {
			err = json.Unmarshal(text, s)
		}
		if err == nil && s.Version > version {
			err = fmt.Errorf("it is of version %d, and this plugin knows %d", s.Version, version)
		}
		switch {
		case err != nil:
			odd[strings.TrimSuffix(filepath.Base(path), suffix)] = fmt.Errorf("read %q: %w; remove it, and the next ADD of the network writes it anew", path, err)
		case s.Boot == boot && path == h.file(s.Name):
			all[s.Name] = s
		}
	}
	return all, odd, nil
}

// write replaces the file of a network; nil removes it. It is not synced: after
// a loss of power it would tell of another boot.
func (h Host) write(network string, s *state) error {
	path, before := h.file(network), h.Dir+temporary+network
	if s == nil {
		for _, path := range []string{before, path} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}
	var err error
	if s.Boot, err = fault.Boot(); err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(before, text, 0o600); err != nil {
		return err
	}
	return os.Rename(before, path)
}
