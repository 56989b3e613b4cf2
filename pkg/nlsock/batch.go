package nlsock

import (
	"context"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// batch is how many requests go with one system call. The kernel has worked
// them off before the call returns. It is silent about what went well, if it
// is not asked, and drops what it has to say once the socket's buffer is full:
// as many complaints of a bit more than 1 KiB must fit into its 208 KiB.
const batch = 128

// Batch sends many small requests, each of which has no answer but an
// acknowledgement, and waits until all are carried out, in their order. It
// returns what the kernel says to each, nil for success. An error that is not
// about one of them ends it: what became of those after the last verdict is
// unknown.
func (c *Conn) Batch(ctx context.Context, reqs []*nl.NetlinkRequest) (verdicts []error, err error) {
	for len(reqs) > 0 {
		if err := ctx.Err(); err != nil {
			return verdicts, err
		}
		n := min(len(reqs), batch)
		some, err := c.carryOut(reqs[:n])
		if err != nil {
			return verdicts, err
		}
		verdicts, reqs = append(verdicts, some...), reqs[n:]
	}
	return verdicts, nil
}

// carryOut sends requests with one system call. Only the last one asks for an
// acknowledgement, which is the end of what the kernel says.
func (c *Conn) carryOut(reqs []*nl.NetlinkRequest) ([]error, error) {
	last := len(reqs) - 1
	place := make(map[uint32]int, len(reqs))
	var datagram []byte
	for i, req := range reqs {
		req.Flags &^= unix.NLM_F_ACK
		if i == last {
			req.Flags |= unix.NLM_F_ACK
		}
		datagram = append(datagram, req.Serialize()...)
		datagram = append(datagram, make([]byte, Align(len(datagram))-len(datagram))...)
		place[req.Seq] = i
	}
	if err := c.send(datagram); err != nil {
		return nil, err
	}
	verdicts := make([]error, len(reqs))
	for {
		answers, err := c.receive()
		if err != nil {
			return nil, err
		}
		for m, err := range messages(answers) {
			if err != nil {
				return nil, err
			}
			i, ours := place[m.Seq]
			if !ours || m.Type != unix.NLMSG_ERROR {
				continue
			}
			if verdicts[i] = verdict(m.NlMsghdr, m.Body); i == last {
				return verdicts, nil
			}
		}
	}
}
