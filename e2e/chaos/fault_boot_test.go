package chaos_test

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// reboot loses all but the host's state: containers, links, RunDir. Of some of
// the containers the runtime knows afterwards, and sends a DEL.
func reboot(n *nemesis, h *host) error {
	h.stay.Lock()
	defer h.stay.Unlock()
	h.gate.Lock()
	defer h.gate.Unlock()
	h.others.mu.Lock()
	defer h.others.mu.Unlock()
	h.End(syscall.SIGKILL)
	n.rest(0, 2*time.Second)
	boot := h.boot.Add(1)
	for _, a := range h.known() {
		n.holders.leave(a)
		if n.choose.IntN(2) == 0 {
			h.know(a, false)
		}
	}
	h.mu.Lock()
	clear(h.lost) // the ledger itself knows what a boot has ended
	h.mu.Unlock()
	err := h.Reboot(context.Background())
	h.Boot(int(boot))
	err = errors.Join(err, h.others.putLocked(h))
	h.Start()
	return err
}
