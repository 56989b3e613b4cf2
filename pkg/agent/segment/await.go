package segment

import (
	"context"
	"fmt"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

// attachPatience is how long an ADD waits to learn of networks where it has to.
const attachPatience = time.Second

// Await says why an attachment cannot be in the segment that it is to be in: the
// registry has a network of that VNI. While the registry is away, what it said last
// counts.
func (t *Task) Await(ctx context.Context, u ipam.Uses) error {
	if t.conf.Cluster == nil || u.Segment.Port == 0 {
		return nil
	}
	// What is known is as new as the registry's watch, and nearly always enough.
	now := t.stands()
	name, taken := now.networks[u.Segment.VNI]
	if taken || now.me == "" {
		ctx, cancel := context.WithTimeout(ctx, attachPatience)
		defer cancel()
		if fresh, err := t.look(ctx); err == nil {
			name, taken = fresh.networks[u.Segment.VNI]
		}
	}
	if !taken {
		return nil
	}
	return &ipam.FieldError{Place: "vni", Msg: fmt.Sprintf("%d is that of the network %q, and no segment has the VNI of a network; choose another one, see: underlayctl network list", u.Segment.VNI, name)}
}
