// Package spool keeps releases that nobody could apply at once, one file each in
// a folder, until somebody can. It needs no lock: a file appears whole or not at
// all, and reading it takes nothing away.
//
// Left out: what a release does, and who may ask for it.
package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/pkg/fault"
)

const (
	// Folder is the name of the folder.
	Folder = "released.d"

	ext = ".json"
	// A temporary file that is older belongs to nobody any more.
	tempAge = time.Hour
)

// Write writes a release down in the folder of the first of dirs that takes it.
// Records made after the call are spared (ReleaseRequest.Before).
func Write(dirs []string, req ipam.ReleaseRequest) error {
	now := fault.Now()
	if req.Before.IsZero() {
		req.Before = now.UTC()
	}
	content, err := json.Marshal(req)
	if err != nil {
		return err
	}
	// The name begins with the time, so that releases are applied in order.
	name := fmt.Sprintf("%020d-%08x%s", now.UnixNano(), rand.Uint32(), ext)
	var errs []error
	for _, dir := range dirs {
		err := into(filepath.Join(dir, Folder), name, content)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// into makes the file whole and durable before it gets its name: whoever
// reads the folder meanwhile sees all of it or nothing.
func into(dir, name string, content []byte) (err error) {
	if err := boltfile.MakeDir(dir, 0o700); err != nil {
		return err
	}
	temp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	fault.Point("ledger.spool.written")
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		return err
	}
	fault.Point("ledger.spool.named")
	return boltfile.SyncDir(dir)
}

// list is what is in a folder, sorted. That of package os has a sort of its own
// for what nobody here asks for, of 11 kB in every plugin.
func list(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// Read calls fn with the requests in the folder of dir, first spooled first. A
// file that holds none, or one that check refuses, is moved aside and stops
// nothing.
func Read(dir string, now time.Time, check func(ipam.ReleaseRequest) error, fn func(file string, req ipam.ReleaseRequest)) error {
	dir = filepath.Join(dir, Folder)
	names, err := list(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range names {
		file := filepath.Join(dir, name)
		switch filepath.Ext(file) {
		case ext:
			var req ipam.ReleaseRequest
			content, err := os.ReadFile(file)
			if err == nil {
				req, err = Parse(content)
			}
			if err == nil {
				err = check(req)
			}
			if err == nil {
				fn(file, req)
			} else if err := os.Rename(file, file+".bad"); err != nil {
				return err
			}
		case ".tmp":
			if info, err := os.Stat(file); err == nil && now.Sub(info.ModTime()) > tempAge {
				_ = os.Remove(file)
			}
		}
	}
	return nil
}

// Parse decodes what Write wrote.
func Parse(content []byte) (req ipam.ReleaseRequest, err error) {
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		return req, err
	}
	if d.InputOffset() != int64(len(content)) {
		return req, errors.New("there is more than one value")
	}
	if req.Before.IsZero() {
		// It would release whatever comes later, too.
		return req, errors.New("it does not say when it was made")
	}
	return req, nil
}
