package network

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/underlay-cni/underlay/pkg/agent/network/plan"
	"github.com/underlay-cni/underlay/pkg/agent/runfile"
)

// syncedFile is where RunDir says which networks an agent of this boot has set
// routes for. They outlive the agent, so one that starts while the registry is
// out of reach need not keep attachments waiting.
const syncedFile = "networks.json"

// earlier is what that file says: networks by name, and whether each was
// masqueraded.
type earlier map[string]bool

// readEarlier reads the file of a folder; that of another boot says nothing.
func readEarlier(dir string) (e earlier, err error) {
	if dir == "" {
		return nil, nil
	}
	return e, runfile.Read(filepath.Join(dir, syncedFile), &e)
}

// lacks says what an attachment would miss of what an earlier agent has set.
func (e earlier) lacks(network string, masquerade bool) bool {
	masqueraded, known := e[network]
	return !known || masquerade && !masqueraded
}

// inherits reports whether there are rules of an earlier agent for what this one
// cannot read. They are one table, and stay as they are.
func (t *Task) inherits(now round) bool {
	if !now.snapshot.Partial {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.earlier {
		n, known := now.snapshot.Network(name)
		odd := slices.ContainsFunc(now.snapshot.Odd, func(o plan.Odd) bool { return o.Network == name })
		if odd && (!known || n.Why != "") { // or it is gone for good
			return true
		}
	}
	return false
}

// remember writes the file where a round came to something else than is there.
func (t *Task) remember(now round) error {
	if t.conf.RunDir == "" || now.synced == nil {
		return nil
	}
	networks := make(earlier)
	for name, synced := range now.synced {
		if synced {
			networks[name] = now.masquerade[name] && t.rules.why() == nil
		}
	}
	if maps.Equal(networks, t.earlier) {
		return nil
	}
	if err := runfile.Write(filepath.Join(t.conf.RunDir, syncedFile), networks); err != nil {
		return fmt.Errorf("remember the networks: %w", err)
	}
	t.mu.Lock()
	t.earlier = networks
	t.mu.Unlock()
	return nil
}
