package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
)

// mark is the content of ledger.seq: what the last acknowledged transaction
// of a boot was, and in which ledger. A ledger that knows less than its mark
// has been lost, replaced or restored behind the back of the containers that
// still use its addresses.
//
// It lies on a file system that a reboot empties, is written in place and is
// not synced: it has to survive the death of processes, not of the kernel.
type mark struct {
	boot, id string
	seq      uint64
	// broken says that a commit broke, so that processes that come later do
	// not build on what may not be on the disk.
	broken bool
}

// String is one line of fixed length, for the UUIDs that boot and id are.
func (m mark) String() string {
	state := "ok"
	if m.broken {
		state = "broken"
	}
	return fmt.Sprintf("%-36s %-36s %020d %-6s\n", m.boot, m.id, m.seq, state)
}

// openMark opens the file for writeTo.
func openMark(path string) (*os.File, error) {
	// What the folder holds beside it has modes of its own.
	if err := boltfile.MakeDir(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

func (m mark) writeTo(f *os.File) error {
	_, err := f.WriteAt([]byte(m.String()), 0)
	return err
}

// readMark reads the mark at path. The zero mark, which is of no boot, stands
// for a missing one, and for one that a power cut left half written.
func readMark(path string) (mark, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return mark{}, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return mark{}, nil
	}
	seq, err := strconv.ParseUint(fields[2], 10, 64)
	if err != nil {
		return mark{}, nil
	}
	return mark{boot: fields[0], id: fields[1], seq: seq, broken: fields[3] == "broken"}, nil
}

// judge says why a ledger with this id and sequence must not give out
// addresses, if the mark is of this boot.
func (m mark) judge(boot, id string, seq uint64) error {
	switch {
	case m.boot != boot:
		return nil
	case m.id != id:
		return fmt.Errorf("%w: its ID is %s, and %s was used since this boot", ErrLost, id, m.id)
	case seq < m.seq:
		return fmt.Errorf("%w: it ends at transaction %d, and %d was acknowledged since this boot", ErrLost, seq, m.seq)
	case m.broken:
		return errBroken
	}
	return nil
}
