package segment

import (
	"context"
	"fmt"
	"sync"

	"github.com/underlay-cni/underlay/pkg/hostnet"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/neigh"
	"github.com/underlay-cni/underlay/pkg/netns"
	"github.com/underlay-cni/underlay/pkg/vxlan"
)

// Entries are those of a segment; see neigh.Reconciler.
type Entries interface {
	Apply(ctx context.Context, want []neigh.Want) error
	Run(ctx context.Context) error
	Status() []neigh.Status
	Err() error
	Close() error
}

var _ Entries = (*neigh.Reconciler)(nil)

// realHost is the kernel's.
type realHost struct {
	ns   *netns.NS // nil: that of the process
	net  *hostnet.Host
	mu   sync.Mutex
	most map[int]int // by VNI, the MTU that the parent allowed last
}

func openHost(ns *netns.NS) (*realHost, error) {
	n, err := hostnet.Open(ns)
	if err != nil {
		return nil, err
	}
	return &realHost{ns: ns, net: n, most: make(map[int]int)}, nil
}

func (h *realHost) close() { _ = h.net.Close() }

// Watch implements Host.
func (h *realHost) Watch(ctx context.Context, heard func()) error {
	if err := h.net.Watch(ctx, nil, heard); err != nil {
		return fmt.Errorf("keep up with the host's links: %w", err)
	}
	return nil
}

// Build implements Host.
func (h *realHost) Build(vni, port int, parent string) (s vxlan.Segment, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fd := -1
	if h.ns != nil {
		fd = h.ns.Fd()
	}
	l, err := link.OpenAt(fd)
	if err != nil {
		return s, err
	}
	defer l.Close()
	if s, err = vxlan.SegmentOf(l, parent, vni, port); err != nil {
		return s, err
	}
	p, err := l.ByName(parent)
	if err != nil {
		return s, err
	}
	// A lower one than the parent leaves may be what a configuration asks for, but
	// not if it is what the parent has left so far.
	most := vxlan.MTU(p.MTU, s.Local)
	if s.MTU < most && s.MTU == h.most[vni] {
		s.MTU = most
	}
	_, err = s.Apply(h.ns)
	if err == nil {
		h.most[vni] = most
	}
	return s, err
}

// Remove implements Host.
func (h *realHost) Remove(vni int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.most, vni)
	return vxlan.RemoveSegment(h.ns, vni)
}

// Entries implements Host.
func (h *realHost) Entries(vni int) (Entries, error) {
	r, err := neigh.New(neigh.Config{Netns: h.ns, Devices: vxlan.Devices(vni)})
	if err != nil {
		return nil, err
	}
	return r, nil
}
