package segment

import (
	"context"
	"fmt"
	"time"

	"github.com/underlay-cni/underlay/ipam"
)

const (
	// attachPatience is how long an ADD waits to learn of networks where it has to.
	attachPatience = time.Second
	// askPatience is how long one may wait for the VNI of its segment: less than a
	// plugin waits for the agent.
	askPatience = 4 * time.Second
	// unused is when a segment is left again that the ADD has not come to.
	unused = time.Minute
)

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

// VNI is that which the cluster has given a tenant's segment by its name; prefer is
// that of who is in it here, 0 for nobody. It gives it one unless look is set.
func (t *Task) VNI(ctx context.Context, tenant, name string, prefer int, look bool) (int, error) {
	if t.conf.Cluster == nil {
		return 0, &ipam.FieldError{Place: "vni", Msg: `is missing, and the agent has no registry that could tell it; name the VNI, or say where the registry is with "registry" in underlayd.json`}
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	r, err := t.conf.Cluster.Client()
	if err != nil {
		return 0, err
	}
	if look {
		return r.HasVNI(ctx, tenant, name)
	}
	if prefer != 0 {
		// A node that is in the segment is known to be.
		if vni, err := r.VNI(ctx, tenant, name, prefer); err != nil || vni == prefer {
			return vni, err
		}
	}
	me := t.stands().me
	if me == "" {
		now, err := t.look(ctx)
		if err != nil {
			return 0, err
		}
		me = now.me
	}
	for {
		vni, err := r.Join(ctx, tenant, name, prefer, me)
		if err != nil {
			return 0, err
		}
		if !t.leaving.stay(vni) {
			t.leaveUnused(vni)
			return vni, nil
		}
		// That this node may be in it could just have been taken back.
		if err := t.leaving.idle(ctx, vni); err != nil {
			return 0, err
		}
	}
}

// leaveUnused leaves a segment that nobody comes to, or its name could not be
// forgotten before the agent starts again.
func (t *Task) leaveUnused(vni int) {
	here := func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.parts[vni] != nil
	}
	if here() {
		return
	}
	time.AfterFunc(unused, func() {
		if !here() {
			t.leaving.begin(vni)
		}
	})
}
