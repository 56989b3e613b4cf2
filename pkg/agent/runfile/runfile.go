// Package runfile keeps what an agent tells the next one of this boot: values in
// JSON, each in a file of RunDir, with the boot that it is of.
//
// The files need not be durable, since a loss of power ends the boot; but they
// are replaced at once, so that a kill leaves the old value or the new one.
package runfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/underlay-cni/underlay/pkg/fault"
)

type file struct {
	Boot  string          `json:"boot"`
	Value json.RawMessage `json:"value"`
}

// Read reads a value into v. Where there is none of this boot, v stays as it is.
func Read(path string, v any) error {
	now, err := fault.Boot()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var f file
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err == nil && f.Boot == now {
		err = json.Unmarshal(f.Value, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// Write replaces the value of a file.
func Write(path string, v any) error {
	now, err := fault.Boot()
	if err != nil {
		return err
	}
	f := file{Boot: now}
	if f.Value, err = json.Marshal(v); err != nil {
		return err
	}
	text, err := json.Marshal(f)
	if err == nil {
		err = Replace(path, text, 0o600)
	}
	return err
}

// Replace writes a file in the place of one that there may be, which others see
// whole at any time, and with a mode that is not subject to umask.
func Replace(path string, text []byte, mode fs.FileMode) (err error) {
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	// Where RunDir or the file is on a disk, a rename may outlive what it names.
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(fresh))
	}
	return err
}
