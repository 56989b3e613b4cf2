// Package mark is what a boot has seen of a ledger, in a file beside it that a
// reboot forgets. What follows from it is the ledger's to say.
package mark

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
)

// Mark is the content of ledger.seq: what the last acknowledged transaction
// of a boot was, and in which ledger. A ledger that knows less than its mark
// has been lost, replaced or restored behind the back of the containers that
// still use its addresses.
//
// It lies on a file system that a reboot empties, is written in place and is
// not synced: it has to survive the death of processes, not of the kernel.
type Mark struct {
	Boot, ID string
	Seq      uint64
	// Broken says that a commit broke, so that processes that come later do
	// not build on what may not be on the disk.
	Broken bool
}

// String is one line of fixed length, for the UUIDs that boot and id are.
func (m Mark) String() string {
	state := "ok"
	if m.Broken {
		state = "broken"
	}
	return fmt.Sprintf("%-36s %-36s %020d %-6s\n", m.Boot, m.ID, m.Seq, state)
}

// Open opens the file for WriteTo.
func Open(path string) (*os.File, error) {
	// What the folder holds beside it has modes of its own.
	if err := boltfile.MakeDir(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// WriteTo writes the mark in place.
func (m Mark) WriteTo(f *os.File) error {
	_, err := f.WriteAt([]byte(m.String()), 0)
	return err
}

// Read reads the mark at path. The zero mark, which is of no boot, stands
// for a missing one, and for one that a power cut left half written.
func Read(path string) (Mark, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Mark{}, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return Mark{}, nil
	}
	seq, err := strconv.ParseUint(fields[2], 10, 64)
	if err != nil {
		return Mark{}, nil
	}
	return Mark{Boot: fields[0], ID: fields[1], Seq: seq, Broken: fields[3] == "broken"}, nil
}
