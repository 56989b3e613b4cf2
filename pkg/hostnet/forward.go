package hostnet

import (
	"fmt"

	"github.com/underlay-cni/underlay/pkg/forward"
)

// Forward has the kernel pass packets on that come in by an interface: IPv4's
// and, with six, IPv6's. Changed are the keys that were another value, for
// people.
func (h *Host) Forward(dev string, six bool) (changed []string, err error) {
	err = h.do(func() error {
		changed, err = forward.By(dev, six)
		return err
	})
	if err != nil {
		err = fmt.Errorf("forward from %q: %w", dev, err)
	}
	return changed, err
}
