package sweep

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/link"
	"github.com/underlay-cni/underlay/pkg/netns"
)

// lookAt finds what is left of attachments on this node.
func lookAt(recs []ipam.AttachmentRecord) ([]Left, error) {
	// Before this process enters any of them itself.
	busy, err := occupied()
	if err != nil {
		return nil, err
	}
	out := make([]Left, len(recs))
	for i, a := range recs {
		if busy[[2]uint64{a.Netns.Dev, a.Netns.Inode}] {
			out[i] = LeftProcess
			continue
		}
		if out[i], err = leftOf(a); err != nil {
			return nil, fmt.Errorf("%s: %w", a.Attachment, err)
		}
	}
	return out, nil
}

func leftOf(a ipam.AttachmentRecord) (left Left, err error) {
	n, err := netns.Find(a.Netns.Path, a.Netns.Dev, a.Netns.Inode)
	if errors.Is(err, netns.ErrGone) {
		return LeftUnseen, nil
	}
	if err != nil {
		return LeftUnseen, err
	}
	defer n.Close()
	left = LeftLink
	err = n.Do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		if _, err = h.ByName(a.Attachment.IfName); errors.Is(err, link.ErrNotFound) {
			left, err = LeftNothing, nil
		}
		return err
	})
	return left, err
}

// occupied are the network namespaces, by device and inode, that a thread is in.
func occupied() (map[[2]uint64]bool, error) {
	busy := map[[2]uint64]bool{}
	threads, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	for _, t := range threads {
		var st unix.Stat_t
		if unix.Stat(t, &st) == nil { // or it has ended
			busy[[2]uint64{st.Dev, st.Ino}] = true
		}
	}
	return busy, nil
}
