package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// ErrNoAgent is returned when nobody listens on the socket.
var ErrNoAgent = errors.New("no agent is running")

// ErrNotFound is returned for what the agent knows nothing of.
var ErrNotFound = errors.New("not found")

// Client calls the Admin API of an agent on this machine.
type Client struct{ http http.Client }

// NewClient makes a client of the agent whose run folder is runDir.
func NewClient(runDir string) *Client {
	socket := filepath.Join(runDir, SocketName)
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
				err = fmt.Errorf("%w: %w", ErrNoAgent, err)
			}
			return c, err
		},
	}}}
}

// Close closes the connections that are kept for further calls.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Node says what the agent is and how its ledger is.
func (c *Client) Node(ctx context.Context) (n Node, err error) {
	return n, c.call(ctx, http.MethodGet, "/v1/node", nil, &n)
}

// Ready says whether the agent serves plugins.
func (c *Client) Ready(ctx context.Context) (r Ready, err error) {
	err = c.call(ctx, http.MethodGet, "/readyz", nil, &r)
	if r.Reason != "" || len(r.Pending) > 0 {
		err = nil // that is the answer
	}
	return r, err
}

// Pools lists the pools as this node has last used them.
func (c *Client) Pools(ctx context.Context) (p []Pool, err error) {
	return p, c.call(ctx, http.MethodGet, "/v1/pools", nil, &p)
}

// Pool returns one of them; ErrNotFound if there is none of that name.
func (c *Client) Pool(ctx context.Context, name string) (p Pool, err error) {
	return p, c.call(ctx, http.MethodGet, "/v1/pools/"+url.PathEscape(name), nil, &p)
}

// AddressFilter says which addresses are wanted; empty fields are any.
type AddressFilter struct {
	Pool, Network string
	State         ipam.State
}

// Addresses lists the records of the addresses that are not free.
func (c *Client) Addresses(ctx context.Context, f AddressFilter) (r []ipam.Record, err error) {
	q := query("pool", f.Pool, "network", f.Network, "state", string(f.State))
	return r, c.call(ctx, http.MethodGet, "/v1/addresses", q, &r)
}

// Address returns the record of an address; ErrNotFound if it is free.
func (c *Client) Address(ctx context.Context, a netip.Addr) (r ipam.Record, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/addresses/"+a.String(), nil, &r)
}

// ReleaseAddress has the ledger forget what it knows of an address, and
// returns what that was.
func (c *Client) ReleaseAddress(ctx context.Context, a netip.Addr) (r ipam.Record, err error) {
	return r, c.call(ctx, http.MethodDelete, "/v1/addresses/"+a.String(), nil, &r)
}

// Attachments lists the attachments of a network, or of all if that is "".
func (c *Client) Attachments(ctx context.Context, network string) (a []ipam.AttachmentRecord, err error) {
	return a, c.call(ctx, http.MethodGet, "/v1/attachments", query("network", network), &a)
}

// Check has the agent read and check the whole ledger.
func (c *Client) Check(ctx context.Context) (v Check, err error) {
	return v, c.call(ctx, http.MethodGet, "/v1/ledger/check", nil, &v)
}

// Ledger returns all that the ledger knows.
func (c *Client) Ledger(ctx context.Context) (d ledger.Dump, err error) {
	return d, c.call(ctx, http.MethodGet, "/v1/ledger", nil, &d)
}

func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// call makes a request and decodes the answer into v, whatever its status.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, v any) error {
	return c.send(ctx, method, path, q, nil, v)
}

// send is call with a document; nil is none.
func (c *Client) send(ctx context.Context, method, path string, q url.Values, document []byte, v any) (err error) {
	res, err := c.open(ctx, method, path, q, document)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	return decode(res, path, v)
}

// open makes a request. The caller closes the body of the response.
func (c *Client) open(ctx context.Context, method, path string, q url.Values, document []byte) (*http.Response, error) {
	switch name := path[strings.LastIndexByte(path, '/')+1:]; name {
	case "", ".", "..": // of another meaning in a path, and nobody's name
		return nil, &tagged{fmt.Errorf("nothing is called %q", name), ErrNotFound}
	}
	u := "http://underlayd" + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(document))
	if err != nil {
		return nil, err
	}
	if document != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	return res, nil
}

// decode reads the answer into v, or the error that it is.
func decode(res *http.Response, path string, v any) error {
	method := res.Request.Method
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("agent: %s %s: %w", method, path, err)
	}
	if res.StatusCode < 400 {
		if err := json.Unmarshal(body, v); err != nil {
			return fmt.Errorf("agent: %s %s: %w", method, path, err)
		}
		return nil
	}
	var p Problem
	if json.Unmarshal(body, &p) != nil || p.Error == nil {
		_ = json.Unmarshal(body, v) // /readyz
		return fmt.Errorf("agent: %s %s: %s", method, path, res.Status)
	}
	return problem(res.StatusCode, p)
}
