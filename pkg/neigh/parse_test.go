package neigh

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/underlay-cni/underlay/pkg/nlsock"
	"github.com/underlay-cni/underlay/pkg/reconcile"
)

// What the kernel says is read whole or not at all.
func FuzzParse(f *testing.F) {
	tbl, err := openTable(nil, []string{"lo"})
	must(f, err)
	f.Cleanup(func() { must(f, tbl.Close()) })
	for _, s := range []string{"10.0.0.1 dev lo lladdr 02:00:00:00:00:01", "self 02:00:00:00:00:01 dev lo dst 2001:db8::1", "master 02:00:00:00:00:01 dev lo"} {
		req, err := tbl.request(reconcile.Change[Entry]{Verb: reconcile.Add, New: parseEntry(f, s)})
		must(f, err)
		b := req.Serialize()[unix.NLMSG_HDRLEN:]
		f.Add(b)
		// What is written is read back as it was. An entry of a bridge comes back
		// with the bridge.
		e, index, err := parse(b)
		if e.Dev = "lo"; e != parseEntry(f, s) && e.Kind != 0 || index != 1 || err != nil {
			f.Errorf("got %s, %d, %v, want %s", e, index, err, s)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b):len(b)] // so that what lies behind cannot hide a panic
		e, _, err := parse(b)
		if e.Kind != 0 && (err != nil || len(b) < unix.SizeofNdMsg || (e.Kind == Master) == e.Addr.IsValid()) {
			t.Errorf("%s, %v", e, err)
		}
		for _, kind := range []uint16{unix.RTM_NEWNEIGH, unix.RTM_NEWLINK} {
			if n := tbl.news(nlsock.Message{NlMsghdr: unix.NlMsghdr{Type: kind}, Body: b}); len(b) < 4 && n != reconcile.Around {
				t.Errorf("news %d of type %d", n, kind)
			}
		}
	})
}
