package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// Imported is the answer of /v1/ledger/import.
type Imported struct {
	// Imported counts the elements of the request.
	Imported int `json:"imported"`
}

// History lists who held an address, first to end first; the last one may hold
// it still.
func (c *Client) History(ctx context.Context, a netip.Addr) (h []ipam.Hold, err error) {
	return h, c.call(ctx, http.MethodGet, "/v1/addresses/"+a.String()+"/history", nil, &h)
}

// Reserve keeps an address of a pool out of use, and returns its record.
func (c *Client) Reserve(ctx context.Context, pool string, a netip.Addr, reason string) (r ipam.Record, err error) {
	return r, c.call(ctx, http.MethodPut, reservation(a), query("pool", pool, "reason", reason), &r)
}

// Unreserve frees an address that is reserved, and returns what its record was.
func (c *Client) Unreserve(ctx context.Context, a netip.Addr) (r ipam.Record, err error) {
	return r, c.call(ctx, http.MethodDelete, reservation(a), nil, &r)
}

func reservation(a netip.Addr) string { return "/v1/addresses/" + a.String() + "/reservation" }

// Conflicts lists the addresses that are quarantined.
func (c *Client) Conflicts(ctx context.Context) (r []ipam.Record, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/conflicts", nil, &r)
}

// ClearConflict frees an address that is quarantined, and returns what its record
// was.
func (c *Client) ClearConflict(ctx context.Context, a netip.Addr) (r ipam.Record, err error) {
	return r, c.call(ctx, http.MethodDelete, "/v1/conflicts/"+a.String(), nil, &r)
}

// Backup writes a copy of the ledger's file.
func (c *Client) Backup(ctx context.Context, w io.Writer) (err error) {
	res, err := c.exchange(ctx, http.MethodGet, "/v1/ledger/backup", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	_, err = io.Copy(w, res.Body)
	return err
}

// Import has the ledger take in what another address manager gave out: all of it
// or nothing.
func (c *Client) Import(ctx context.Context, found []ledger.Found) error {
	body, err := json.Marshal(found)
	if err != nil {
		return err
	}
	res, err := c.exchange(ctx, http.MethodPost, "/v1/ledger/import", body)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// exchange is call for a body that is no document of this package, or that is
// sent.
func (c *Client) exchange(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://underlayd"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	var p Problem
	if json.NewDecoder(res.Body).Decode(&p) != nil || p.Error == nil {
		return nil, fmt.Errorf("agent: %s %s: %s", method, path, res.Status)
	}
	return nil, p.Error.Err()
}
