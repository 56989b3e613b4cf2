package e2e_test

import (
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// Containers that went without a DEL do not use up a pool: when nothing else
// is left, their addresses come back, after a second look half a minute later.
// That is done only where namespaces can be seen as init sees them. Here init
// may be out of sight, so the plugins run below one of the test's own. Beside
// other tests, a new namespace of theirs would get the number of the dead one,
// which counts as alive then.
func TestLeakReclaimed(t *testing.T) {
	h := oneHost(t)
	conf := placed(t, h, keys{"ipam": oneAddress("")})
	seeing := []string{"unshare", "--pid", "--fork", "--mount-proc", "--"}
	add := func(rt *libcni.RuntimeConf) error {
		_, err := call{verb: "ADD", rt: rt, through: seeing}.run(t, h, conf)
		return err
	}
	dead, rt1 := container(t, h, "c1")
	_, rt2 := container(t, h, "c2")
	wantOK(t, "ADD c1", add(rt1))
	wantError(t, add(rt2), codeTryAgain, "1 usable, 1 held", "underlayctl ledger check")
	mustDo(t, h.Namespace, "ip", "netns", "delete", dead.ID)
	// The first look, which changes nothing yet.
	wantError(t, add(rt2), codeTryAgain, "1 usable, 1 held")
	if held := readBooks(t, h).held(); len(held[rt1.ContainerID]) != 1 {
		t.Errorf("held after one look: %v", held)
	}
	var err error
	eventually(t, "ADD gets the address of the dead", func() bool {
		err = add(rt2)
		return err == nil
	})
	if held := readBooks(t, h).held(); len(held) != 1 || len(held[rt2.ContainerID]) != 1 {
		t.Errorf("held: %v, want the one address of c2", held)
	}
}
