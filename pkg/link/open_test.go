package link

import (
	"os"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	here, there := newSpace(t), newSpace(t)
	here.ip(t, "link add here type veth peer name h2")
	there.ip(t, "link add there type veth peer name t2")
	var got [3]string
	must(t, there.ns.Do(func(ns.NetNS) error {
		// OpenAt looks elsewhere and does not move the thread there.
		for i, open := range []func() (*Handle, error){Open, func() (*Handle, error) { return OpenAt(here.fd()) }, Open} {
			h, err := open()
			if err != nil {
				return err
			}
			defer h.Close()
			list, err := h.List()
			if err != nil {
				return err
			}
			for _, l := range list {
				got[i] += l.Name + " "
			}
		}
		return nil
	}))
	if diff := cmp.Diff([3]string{"lo t2 there ", "lo h2 here ", "lo t2 there "}, got); diff != "" {
		t.Errorf("links that are seen (-want +got):\n%s", diff)
	}

	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	_, err = OpenAt(int(null.Fd()))
	wantError(t, err, "enter netns: invalid argument")
}
