package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// syncedFile is where RunDir says which networks an agent of this boot has set
// routes for. They outlive the agent, so one that starts while the registry is
// out of reach need not keep attachments waiting.
const syncedFile = "networks.json"

// earlier is what that file says: networks by name, and whether each was
// masqueraded.
type earlier struct {
	Boot     string          `json:"boot"`
	Networks map[string]bool `json:"networks"`
}

// readEarlier reads the file of a folder; that of another boot says nothing.
func readEarlier(dir string) (earlier, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return earlier{}, err
	}
	now := earlier{Boot: strings.TrimSpace(string(boot))}
	if dir == "" {
		return now, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, syncedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return now, nil
	}
	var e earlier
	if err == nil {
		err = json.Unmarshal(text, &e)
	}
	if err != nil || e.Boot != now.Boot {
		return now, err
	}
	return e, nil
}

// lacks says what an attachment would miss of what an earlier agent has set.
func (e earlier) lacks(network string, masquerade bool) bool {
	masqueraded, known := e.Networks[network]
	return !known || masquerade && !masqueraded
}

// remember writes the file where a round came to something else than is there.
// It need not be durable: a loss of power ends the boot.
func (t *Task) remember(now round) error {
	if t.conf.RunDir == "" || now.synced == nil {
		return nil
	}
	networks := make(map[string]bool)
	for name, synced := range now.synced {
		if synced {
			networks[name] = now.masquerade[name] && t.rules.why() == nil
		}
	}
	if maps.Equal(networks, t.earlier.Networks) {
		return nil
	}
	e := earlier{Boot: t.earlier.Boot, Networks: networks}
	text, err := json.Marshal(e)
	path := filepath.Join(t.conf.RunDir, syncedFile)
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("remember the networks: %w", err)
	}
	t.mu.Lock()
	t.earlier = e
	t.mu.Unlock()
	return nil
}
