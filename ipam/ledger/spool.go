package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/pkg/fault"
)

const (
	spoolName = "released.d"
	spoolExt  = ".json"
	// A temporary file that is older belongs to nobody any more.
	spoolTempAge = time.Hour
)

// Spool writes a release down for the next one who opens the ledger for
// writing, in the folder released.d of the first of dirs that takes it: the
// data folder, then the run folder. It needs no lock. Records made after the
// call are spared (ReleaseRequest.Before).
func Spool(dirs []string, req ipam.ReleaseRequest) error {
	if err := checkAttachment(req.Attachment); err != nil {
		return err
	}
	now := time.Now()
	if req.Before.IsZero() {
		req.Before = now.UTC()
	}
	content, err := json.Marshal(req)
	if err != nil {
		return err
	}
	// The name begins with the time, so that releases are applied in order.
	name := fmt.Sprintf("%020d-%08x%s", now.UnixNano(), rand.Uint32(), spoolExt)
	var errs []error
	for _, dir := range dirs {
		err := spoolInto(filepath.Join(dir, spoolName), name, content)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("spool the release of %s: %w", req.Attachment, errors.Join(errs...))
}

// spoolInto makes the file whole and durable before it gets its name: whoever
// reads the folder meanwhile sees all of it or nothing.
func spoolInto(dir, name string, content []byte) (err error) {
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

// Drain applies what was spooled while the ledger is open, by callers whom it
// had no time to answer. An Allocate that begins after theirs must come after
// it, too.
func (l *Ledger) Drain() error { return l.o.explain(l.drain()) }

// drain applies the spooled releases in one transaction and removes their
// files. If it dies in between they are applied again, to the same effect:
// nobody allocates before they are gone.
func (l *Ledger) drain() error {
	l.spool.Lock()
	defer l.spool.Unlock()
	var files []string
	var reqs []ipam.ReleaseRequest
	for _, dir := range []string{l.o.DataDir, l.o.RunDir} {
		err := readSpool(filepath.Join(dir, spoolName), l.o.Now(), func(file string, req ipam.ReleaseRequest) {
			files, reqs = append(files, file), append(reqs, req)
		})
		if err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return nil
	}
	err := l.update(func(t *tx) error {
		for _, req := range reqs {
			if _, err := t.releaseKnown(req); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, file := range files {
		fault.Point("ledger.drain.applied")
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// readSpool calls fn with the requests in dir, first spooled first. A file
// that holds none is moved aside and stops nothing.
func readSpool(dir string, now time.Time, fn func(file string, req ipam.ReleaseRequest)) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch filepath.Ext(file) {
		case spoolExt:
			var req ipam.ReleaseRequest
			content, err := os.ReadFile(file)
			if err == nil {
				req, err = parseSpooled(content)
			}
			if err == nil {
				fn(file, req)
			} else if err := os.Rename(file, file+".bad"); err != nil {
				return err
			}
		case ".tmp":
			if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > spoolTempAge {
				_ = os.Remove(file)
			}
		}
	}
	return nil
}

// parseSpooled decodes what Spool wrote.
func parseSpooled(content []byte) (req ipam.ReleaseRequest, err error) {
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
	return req, checkAttachment(req.Attachment)
}
