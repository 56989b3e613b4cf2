package chaos_test

import (
	"context"
	"errors"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// run runs commands on the host, all of them.
func (h *host) run(lines ...[]string) error {
	var errs []error
	for _, argv := range lines {
		_, err := h.Exec(context.Background(), argv...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func downParent(n *nemesis, h *host) error {
	h.wire.Lock()
	defer h.wire.Unlock()
	err := h.run([]string{"ip", "link", "set", lab.Parent, "down"})
	n.rest(300*time.Millisecond, 4*time.Second)
	return errors.Join(err, h.Address(context.Background()))
}

func renameParent(n *nemesis, h *host) error {
	h.wire.Lock()
	defer h.wire.Unlock()
	rename := func(from, to string) error {
		return h.run([]string{"ip", "link", "set", from, "down"}, []string{"ip", "link", "set", from, "name", to}, []string{"ip", "link", "set", to, "up"})
	}
	err := rename(lab.Parent, "wan0")
	n.rest(300*time.Millisecond, 4*time.Second)
	return errors.Join(err, rename("wan0", lab.Parent), h.Address(context.Background()))
}

func removeParent(n *nemesis, h *host) error {
	h.wire.Lock()
	defer h.wire.Unlock()
	h.port.Add(1)
	err := h.Unplug(context.Background())
	n.rest(300*time.Millisecond, 4*time.Second)
	// What was attached meanwhile has no link either.
	h.port.Add(1)
	return errors.Join(err, h.Plug(context.Background()))
}
