// Package wire is what a plugin and the agent say to each other over the unix
// socket cni.sock: on each connection one request and one response, a line of
// JSON each. A line that is too long, of another version or not JSON is
// answered with an error; a connection that ends without an answer means that
// nothing is known of what became of the request.
//
// Errors cross as what they are: Failure turns one into JSON, and its Err
// returns an error of the same type, text and CNI code.
package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
)

const (
	// Version of the protocol. A change that an older side would misread is a
	// new version; a key that it may ignore is not.
	Version = 1
	// SocketName is that of the socket in the run folder.
	SocketName = "cni.sock"
	// MaxRequest and MaxResponse are the longest lines, in bytes. A garbage
	// collection asks for all attachments of a network.
	MaxRequest  = 1 << 20
	MaxResponse = 64 << 20
)

// Op is what is asked for.
type Op string

// The requests and what they come with.
const (
	// OpAllocate: Allocate. Response: Allocation.
	OpAllocate Op = "allocate"
	// OpRelease: Release, Seen. Response: Released, or Other.
	OpRelease Op = "release"
	// OpAttachment: Attachment. Response: Attachments (one or none), Records.
	OpAttachment Op = "attachment"
	// OpStale: Stale. Response: Attachments.
	OpStale Op = "stale"
	// OpUsers: Uses, Most. Response: Attachments and Others.
	OpUsers Op = "users"
	// OpSegment: Uses, of which the Segment's VNI counts, and Most. Response:
	// Attachments.
	OpSegment Op = "segment"
	// OpVNI: VNI. Response: VNI.
	OpVNI Op = "vni"
	// OpStatus: Status. Response: nothing.
	OpStatus Op = "status"
)

// Request is a plugin's. What does not belong to Op is left out.
type Request struct {
	Version int `json:"v"`
	Op      Op  `json:"op"`
	// Deadline is when nobody waits for the answer any more, in nanoseconds of
	// CLOCK_BOOTTIME, which all processes share and no one can set.
	Deadline int64 `json:"deadline"`
	// DataDir is the folder of the ledger that is meant.
	DataDir string `json:"dataDir"`

	Allocate *ipam.AllocateRequest `json:"allocate,omitempty"`
	Release  *ipam.ReleaseRequest  `json:"release,omitempty"`
	// Seen makes a release depend on the record being the one that was seen.
	Seen       *Seen            `json:"seen,omitempty"`
	Attachment *ipam.Attachment `json:"attachment,omitempty"`
	Stale      *Stale           `json:"stale,omitempty"`
	Uses       *ipam.Uses       `json:"uses,omitempty"`
	// Most of each kind of user to tell; 0 means all.
	Most   int     `json:"most,omitempty"`
	VNI    *VNI    `json:"vni,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Seen tells one record of an attachment from a later one; the zero value
// means that there was none.
type Seen struct {
	Since time.Time  `json:"since,omitzero"`
	Netns ipam.Netns `json:"netns,omitzero"`
}

// SeenOf is what tells rec.
func SeenOf(rec ipam.AttachmentRecord) Seen { return Seen{rec.Since.UTC(), rec.Netns} }

// Equal reports whether both tell the same record.
func (s Seen) Equal(o Seen) bool { return s.Since.Equal(o.Since) && s.Netns == o.Netns }

// Stale asks for the attachments of a network and a runtime, or of an unknown
// one, that were made before a time.
type Stale struct {
	Network string    `json:"network"`
	Runtime string    `json:"runtime"`
	Before  time.Time `json:"before"`
}

// Status asks why an ADD would fail now.
type Status struct {
	Pool ipam.Pool `json:"pool"`
	// Cluster is the name of a cluster pool, in the place of Pool.
	Cluster string `json:"cluster,omitempty"`
	// Exhausted: a pool without a free address counts.
	Exhausted bool `json:"exhausted,omitempty"`
}

// VNI asks for that of a segment which has it by its name.
type VNI struct {
	Tenant string `json:"tenant"`
	Name   string `json:"name"`
	// Network is what the ledger has the segment's attachments by.
	Network string `json:"network"`
	// Look: whether there is one to be had. Nothing is allocated, and the answer
	// may be 0.
	Look bool `json:"look,omitempty"`
}

// Response is the agent's.
type Response struct {
	Version int      `json:"v"`
	Failure *Failure `json:"error,omitempty"`

	Allocation *ipam.Allocation `json:"allocation,omitempty"`
	Released   *ipam.Released   `json:"released,omitempty"`
	// Other is the record that a release has found instead of the one that was
	// seen, the zero value for none. Nothing was released.
	Other       *ipam.AttachmentRecord  `json:"other,omitempty"`
	Attachments []ipam.AttachmentRecord `json:"attachments,omitempty"`
	Others      []ipam.AttachmentRecord `json:"others,omitempty"`
	Records     []ipam.Record           `json:"records,omitempty"`
	VNI         int                     `json:"vni,omitempty"`
}

// Boottime is CLOCK_BOOTTIME.
func Boottime() time.Duration {
	var ts unix.Timespec
	// It fails only for a clock that does not exist.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}

// ErrTooLong is returned for a line that is longer than it may be.
var ErrTooLong = errors.New("the line is too long")

// line reads one line of at most limit bytes.
func line(r io.Reader, limit int64) ([]byte, error) {
	b, err := bufio.NewReader(io.LimitReader(r, limit)).ReadBytes('\n')
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, io.EOF) && int64(len(b)) >= limit:
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLong, limit)
	case errors.Is(err, io.EOF) && len(b) > 0:
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

// Encode returns the line of a request or a response.
func Encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return append(b, '\n'), err
}

// BadRequest is returned by ReadRequest for what has to be answered with an
// error, as opposed to a connection that broke.
type BadRequest struct{ Err error }

func (e *BadRequest) Error() string { return "request: " + e.Err.Error() }
func (e *BadRequest) Unwrap() error { return e.Err }

// ReadRequest reads and checks a request.
func ReadRequest(r io.Reader) (*Request, error) {
	b, err := line(r, MaxRequest)
	if errors.Is(err, ErrTooLong) {
		return nil, &BadRequest{err}
	}
	if err != nil {
		return nil, err
	}
	var version struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, &BadRequest{err}
	}
	if version.Version != Version {
		return nil, &BadRequest{fmt.Errorf("version %d of the protocol, and this agent speaks %d", version.Version, Version)}
	}
	q := new(Request)
	if err := json.Unmarshal(b, q); err != nil {
		return nil, &BadRequest{err}
	}
	if err := q.check(); err != nil {
		return nil, &BadRequest{err}
	}
	return q, nil
}

func (q *Request) check() error {
	there := map[Op]bool{
		OpAllocate:   q.Allocate != nil,
		OpRelease:    q.Release != nil,
		OpAttachment: q.Attachment != nil,
		OpStale:      q.Stale != nil,
		OpUsers:      q.Uses != nil,
		OpSegment:    q.Uses != nil,
		OpVNI:        q.VNI != nil,
		OpStatus:     q.Status != nil,
	}
	has, known := there[q.Op]
	switch {
	case !known:
		return fmt.Errorf("unknown operation %q", q.Op)
	case !has:
		return fmt.Errorf("operation %q without what it is about", q.Op)
	case q.Deadline <= 0:
		return errors.New("it has no deadline")
	}
	return nil
}

// ReadResponse reads a response.
func ReadResponse(r io.Reader) (*Response, error) {
	b, err := line(r, MaxResponse)
	if err != nil {
		return nil, err
	}
	if a, ok := allocated(string(b)); ok {
		return a, nil
	}
	a := new(Response)
	return a, json.Unmarshal(b, a)
}
