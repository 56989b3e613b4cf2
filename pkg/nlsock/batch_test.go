package nlsock

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/netns/netnstest"
)

// address is a request for one more address of lo, or for one that the kernel
// refuses.
func address(i int, good bool) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index, msg.Prefixlen = 1, 32
	if !good {
		msg.Index = 1 << 20
	}
	req.AddData(msg)
	a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	return req
}

// Each request has its own verdict, wherever it stands; and thousands of
// complaints do not fill the socket's buffer.
func TestBatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		n    int
		good func(i int) bool
	}{
		{"none", 0, nil},
		{"one", 1, func(int) bool { return true }},
		{"one refused", 1, func(int) bool { return false }},
		{"a few", 7, func(i int) bool { return i != 3 }},
		{"exactly one system call", batch, func(i int) bool { return i != 0 }},
		{"one more", batch + 1, func(i int) bool { return i < batch }},
		{"many", 1000, func(i int) bool { return i%3 > 0 }},
		{"all refused", 5000, func(int) bool { return false }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := Dial(netnstest.New(t).Fd())
			must(t, err)
			defer c.Close()
			var reqs []*nl.NetlinkRequest
			good := 0
			for i := range tt.n {
				reqs = append(reqs, address(i, tt.good(i)))
				if tt.good(i) {
					good++
				}
			}
			verdicts, err := c.Batch(t.Context(), reqs)
			must(t, err)
			if len(verdicts) != tt.n {
				t.Fatalf("%d verdicts on %d requests", len(verdicts), tt.n)
			}
			for i, v := range verdicts {
				if tt.good(i) != (v == nil) || v != nil && !errors.Is(v, unix.ENODEV) {
					t.Errorf("request %d: %v", i, v)
				}
			}
			list := nl.NewNetlinkRequest(unix.RTM_GETADDR, 0)
			list.AddData(nl.NewIfAddrmsg(unix.AF_INET))
			there, err := c.Dump(list)
			must(t, err)
			if len(there) != good {
				t.Errorf("%d addresses are there, want %d", len(there), good)
			}
		})
	}
}

// After an error that is about none of them, what has its verdict is known.
func TestBatchEnds(t *testing.T) {
	t.Parallel()
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		c, _ := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		verdicts, err := c.Batch(ctx, []*nl.NetlinkRequest{address(1, true)})
		if len(verdicts) != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("%d verdicts, %v", len(verdicts), err)
		}
	})
	t.Run("cut off", func(t *testing.T) {
		t.Parallel()
		c, kernel := pair(t)
		c.buf = make([]byte, 4096)
		var reqs []*nl.NetlinkRequest
		for i := range batch + 2 {
			reqs = append(reqs, address(i, true))
		}
		// The first call: the second request is refused, the last one acknowledged.
		// What belongs to none of them is passed over.
		refused := message(unix.NLMSG_ERROR, 0, reqs[1].Seq, append(errno(unix.EEXIST), make([]byte, unix.NLMSG_HDRLEN)...))
		stale := message(unix.NLMSG_ERROR, 0, reqs[0].Seq-1, refused[unix.NLMSG_HDRLEN:])
		acked := message(unix.NLMSG_ERROR, 0, reqs[batch-1].Seq, acked.body)
		for _, datagram := range [][]byte{stale, refused, acked, acked[:unix.NLMSG_HDRLEN-1]} {
			_, err := unix.Write(kernel, datagram)
			must(t, err)
		}
		verdicts, err := c.Batch(t.Context(), reqs)
		if len(verdicts) != batch || !errors.Is(verdicts[1], unix.EEXIST) || verdicts[0] != nil || !errors.Is(err, ErrCutOff) {
			t.Errorf("%d verdicts, %v", len(verdicts), err)
		}
	})
}
