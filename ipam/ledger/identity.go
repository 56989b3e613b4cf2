package ledger

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// Node is the identity under which this node leases blocks: the ledger's ID.
func (l *Ledger) Node() (n lease.Node, err error) {
	err = l.view(func(t *tx) error {
		n = t.node()
		return nil
	})
	return n, err
}

// Identity tells the file of a ledger, open in one process at a time, from all
// copies of it.
type Identity struct {
	// Machine and Boot are the IDs of the machine and the boot that it is open
	// on.
	Machine, Boot string
	// Device and Inode of ledger.db.
	Device, Inode uint64
}

// Identity of the open file.
func (l *Ledger) Identity() (Identity, error) {
	i := Identity{Machine: l.o.machine(), Boot: l.o.BootID}
	var st unix.Stat_t
	if err := unix.Stat(l.o.dbPath(), &st); err != nil {
		return i, l.o.explain(fmt.Errorf("stat: %w", err))
	}
	i.Device, i.Inode = st.Dev, st.Ino
	return i, nil
}

// machine is "" where the machine has no ID.
func (o *Options) machine() string {
	if o.MachineID != "" {
		return o.MachineID
	}
	b, _ := os.ReadFile("/etc/machine-id") // not every machine has one
	return string(bytes.TrimSpace(b))
}

// foreign says why a ledger that was made on the machine with this ID must not
// give out addresses here.
func (o *Options) foreign(made string) error {
	if here := o.machine(); made != "" && here != "" && made != here {
		return fmt.Errorf("%w: it was made on the machine with the ID %s, and this one has %s", ErrLost, made, here)
	}
	return nil
}
