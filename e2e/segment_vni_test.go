package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
)

// named is the configuration of a tenant's segment that has its VNI by its name.
func (m *member) named(name, tenant, pool string) string {
	m.t.Helper()
	first := merged(segment(0, nil), keys{"tenant": tenant, "dataDir": m.DataDir, "runDir": m.RunDir})
	delete(first, "vni")
	return chain(m.t, name, first, keys{
		"type": "macvlan", "mode": "bridge", "dataDir": m.DataDir, "runDir": m.RunDir, "ipam": keys{"type": "underlay", "pool": pool},
	})
}

// TestSegmentByName: who names a tenant in the place of a VNI gets the one that the
// cluster has given the network's name, on all hosts; it stays with the name, also
// while nobody is there to ask, until an operator takes it back.
func TestSegmentByName(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.pool(redPool)
	c.pool(bluePool)
	h1, h2 := c.hosts[0], c.hosts[1]
	_, rt := container(t, h1.Host, "r0")
	red, blue := h1.named("lan", "red", "red"), h1.named("lan2", "blue", "blue")
	_, err := h1.CNI(ours).Add(t.Context(), red, rt)
	wantError(t, err, codeConfig, `vni: is missing, and tenant "red" has no range to take one from`, "underlayctl tenant vnis red FIRST-LAST")
	wantError(t, h1.CNI(ours).Status(t.Context(), red), codeStatus, `tenant "red" has no range`)
	ctl(t, h1.Host, "tenant", "vnis", "red", "5000-5000")
	ctl(t, h1.Host, "tenant", "vnis", "blue", "5000-5009")
	wantOK(t, "STATUS", h1.CNI(ours).Status(t.Context(), red))

	r1, r2 := attach(t, h1.Host, "r1", red), attach(t, h2.Host, "r2", h2.named("lan", "red", "red"))
	b1, b2 := attach(t, h1.Host, "b1", blue), attach(t, h2.Host, "b2", h2.named("lan2", "blue", "blue"))
	wantSegments(t, h1.Host, 5000, 5001)
	wantSegments(t, h2.Host, 5000, 5001)
	for _, m := range c.hosts {
		eventually(t, "endpoints on "+m.Name, func() bool {
			out := ctl(t, m.Host, "segment", "show", "5000") + ctl(t, m.Host, "segment", "show", "5001")
			return strings.Count(out, " local ") == 2 && strings.Count(out, " remote ") == 2
		})
	}
	meet(t, r1.station, r2.station)
	meet(t, b1.station, b2.station)
	if out := ctl(t, h2.Host, "segment", "names"); !strings.Contains(out, "5000  red     lan\n5001  blue    lan2") {
		t.Errorf("names:\n%s", out)
	}
	_, rt = container(t, h1.Host, "r3")
	_, err = h1.CNI(ours).Add(t.Context(), h1.named("lan3", "red", "red"), rt)
	wantError(t, err, codeTryAgain, `tenant "red" has no free VNI in 5000-5000: of 1, segments have 1 by their name`)

	// Who is in it tells while the agent is away, and nobody else can.
	h1.end(syscall.SIGKILL)
	r4 := attach(t, h1.Host, "r4", red)
	wantSegments(t, h1.Host, 5000, 5001)
	meet(t, r1.station, r4.station)
	_, err = h1.CNI(ours).Add(t.Context(), h1.named("lan4", "blue", "blue"), rt)
	wantError(t, err, codeTryAgain, `vni: is missing, no container of network "lan4" is on this node, and no agent runs here`)
	for _, a := range []*attachment{r1, r2, r4, b1, b2} {
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
	}
	b1.del()
	r1.del()
	r4.del()
	wantSegments(t, h1.Host)
	c.start()

	forget := func() string {
		out, err := h2.Exec(t.Context(), filepath.Join(ours, "underlayctl"), "--run-dir", h2.RunDir, "segment", "forget", "lan", "--tenant", "red")
		return fmt.Sprint(out, err)
	}
	if said := forget(); !strings.Contains(said, `VNI 5000 of segment "lan" of tenant "red" is in use: node "h`) {
		t.Errorf("forgotten while somebody uses it: %s", said)
	}
	r2.del()
	b2.del()
	eventually(t, "a name that nobody uses", func() bool { return strings.Contains(forget(), "has VNI 5000 no more") })
	r5 := attach(t, h1.Host, "r5", h1.named("lan3", "red", "red"))
	wantSegments(t, h1.Host, 5000)
	// Of one whose record alone is gone, as after a sweep, GC removes the rest.
	_, err = client.New(h1.DataDir, h1.RunDir).Release(t.Context(), ipam.ReleaseRequest{Attachment: ipam.Attachment{
		Network: "lan3/vxlan", ContainerID: r5.rt.ContainerID, IfName: r5.rt.IfName,
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantOK(t, "GC", r5.cni.GC(t.Context(), r5.conf))
	wantSegments(t, h1.Host)
	wantSegments(t, h2.Host)
}
