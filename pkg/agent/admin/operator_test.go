package admin

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// ofStates are the routes that want an address in some state, or a document.
var ofStates = []string{
	"PUT /v1/addresses/{address}/reservation", "DELETE /v1/addresses/{address}/reservation",
	"DELETE /v1/conflicts/{address}", "POST /v1/ledger/import",
}

func TestOperator(t *testing.T) {
	t.Parallel()
	c, shelf, _ := serve(t)
	ctx := t.Context()
	held, free := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.77")
	var field *ipam.FieldError
	if _, err := c.Reserve(ctx, "lan/1", held, "why"); !errors.As(err, &field) || !strings.Contains(err.Error(), "held by lan/1/c1/eth0") {
		t.Errorf("reserve what is held: %v", err)
	}
	if _, err := c.Reserve(ctx, "", free, ""); !errors.As(err, &field) || field.Place != "pool" {
		t.Errorf("reserve of no pool: %v", err)
	}
	if r, err := c.Reserve(ctx, "lan/1", free, "a printer & more"); err != nil || r.State != ipam.Reserved || r.Reason != "a printer & more" {
		t.Errorf("reserve: %+v, %v", r, err)
	}
	if _, err := c.ClearConflict(ctx, free); !errors.As(err, &field) {
		t.Errorf("clear what is reserved: %v", err)
	}
	if r, err := c.Unreserve(ctx, free); err != nil || r.Reason != "a printer & more" {
		t.Errorf("unreserve: %+v, %v", r, err)
	}
	if _, err := c.Unreserve(ctx, held); !errors.As(err, &field) {
		t.Errorf("unreserve what is held: %v", err)
	}
	if h, err := c.History(ctx, held); err != nil || len(h) != 1 || h[0].Attachment.ContainerID != "c1" || !h[0].Until.IsZero() {
		t.Errorf("history: %+v, %v", h, err)
	}
	if r, err := c.Conflicts(ctx); err != nil || len(r) != 0 {
		t.Errorf("conflicts: %+v, %v", r, err)
	}
	err := shelf.With(func(l *ledger.Ledger) error {
		_, err := l.Release(ipam.ReleaseRequest{Attachment: ipam.Attachment{Network: "lan/1", ContainerID: "c1", IfName: "eth0"},
			Conflict: []ipam.Conflict{{Address: held, Reason: "answered"}}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Conflicts(ctx); err != nil || len(r) != 1 || r[0].Reason != "answered" {
		t.Errorf("conflicts: %+v, %v", r, err)
	}
	if r, err := c.ClearConflict(ctx, held); err != nil || r.State != ipam.Quarantined {
		t.Errorf("clear: %+v, %v", r, err)
	}
	if h, err := c.History(ctx, held); err != nil || len(h) != 1 || h[0].Until.IsZero() {
		t.Errorf("history: %+v, %v", h, err)
	}
	if h, err := c.History(ctx, free); err != nil || h == nil || len(h) != 0 {
		t.Errorf("history of a free one: %+v, %v", h, err)
	}
}

func TestBackupAndImport(t *testing.T) {
	t.Parallel()
	c, shelf, _ := serve(t)
	ctx := t.Context()
	var b bytes.Buffer
	if err := c.Backup(ctx, &b); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ledger.db"), b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(ctx, ledger.Options{DataDir: dir, RunDir: filepath.Join(dir, "run"), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := l.Info(); err != nil || info.Held != 2 {
		t.Errorf("the copy: %+v, %v", info, err)
	}
	found := []ledger.Found{{Pool: "old", Reason: "from elsewhere", Addresses: []ipam.Address{{Prefix: netip.MustParsePrefix("10.1.0.5/24")}}}}
	if err := c.Import(ctx, found); err != nil {
		t.Errorf("import: %v", err)
	}
	var field *ipam.FieldError
	if err := c.Import(ctx, found); !errors.As(err, &field) {
		t.Errorf("import again: %v", err)
	}
	if r, err := c.Address(ctx, netip.MustParseAddr("10.1.0.5")); err != nil || r.State != ipam.Reserved || r.Reason != "from elsewhere" {
		t.Errorf("imported: %+v, %v", r, err)
	}
	shelf.put(&ipam.LedgerError{Path: "/x", Msg: "gives out no addresses", Err: ledger.ErrLost})
	if err := c.Backup(ctx, &b); !errors.Is(err, ledger.ErrLost) {
		t.Errorf("backup without a ledger: %v", err)
	}
}
