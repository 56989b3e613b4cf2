package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"net/netip"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/boltfile"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
	"github.com/underlay-cni/underlay/ipam/ledger/rest"
	"github.com/underlay-cni/underlay/ipam/ledger/run"
	"github.com/underlay-cni/underlay/ipam/ledger/spool"
)

func FuzzRecord(f *testing.F) {
	key := addrKey(netip.MustParseAddr("10.0.0.2"))
	rec := ipam.Record{Version: 1, Pool: "lan", Address: netip.MustParsePrefix("10.0.0.2/24"), State: ipam.Held, Attachment: att("a")}
	for _, r := range []ipam.Record{rec, {}, {Version: 1, Address: rec.Address, State: ipam.Cooling, Until: time.Unix(5, 0)}} {
		f.Add(key, record.Encode(r))
	}
	f.Add(attachmentKey(att("a")), record.EncodeAttachment(ipam.AttachmentRecord{Version: 1, Attachment: att("a")}))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if rec, err := decodeRecord(key, value); err == nil {
			b := record.Encode(rec)
			again, err := decodeRecord(key, b)
			if err != nil || !bytes.Equal(b, record.Encode(again)) {
				t.Errorf("%x comes back as %+v, %v", b, again, err)
			}
			rest.Of(rec)
			parkedKey(rec)
		} else if !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
		if rec, err := decodeAttachment(key, value); err == nil {
			usersOf(rec)
		} else if !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
		if r, err := decodeRest(key, value); err == nil {
			if b := append(rest.Micros(r.Until), addrKey(r.Addr)...); !bytes.Equal(b, key) {
				t.Errorf("rest entry %x comes back as %x", key, b)
			}
		}
		_, _ = run.Decode(key, value)
		_, _ = spool.Parse(value)
	})
}

// FuzzOpen opens arbitrary files: with a patch, a good ledger that it is put
// into. With fix, the checksums of the head pages are made right, so that what
// lies behind them is reached.
func FuzzOpen(f *testing.F) {
	good, _ := sample(f)
	for page := range uint32(len(good) / 4096) {
		f.Add([]byte{}, page*4096+16, []byte{1, 0, 0, 0}, true)
	}
	f.Add(bytes.Repeat([]byte("ledger"), 4096), uint32(0), []byte{}, false)
	f.Fuzz(func(t *testing.T, file []byte, at uint32, patch []byte, fix bool) {
		if len(patch) > 0 {
			file = bytes.Clone(good)
			copy(file[int(at)%len(file):], patch)
		}
		for i := 0; fix && i < 2 && len(file) >= (i+1)*4096; i++ {
			meta := file[i*4096+16:]
			sum := fnv.New64a()
			_, _ = sum.Write(meta[:56])
			binary.NativeEndian.PutUint64(meta[56:], sum.Sum64())
		}
		o := testOptions(t, newClock())
		if err := boltfile.MakeDir(o.DataDir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, o.dbPath(), file)
		l, err := Open(t.Context(), o)
		if err != nil {
			if explained := (*ipam.LedgerError)(nil); !errors.As(err, &explained) {
				t.Errorf("open: %v", err)
			}
			return
		}
		p := pool("lan", set(t, "10.0.0.0/24"))
		_ = l.Records(func(ipam.Record) error { return nil })
		_ = l.History(netip.MustParseAddr("10.0.0.2"), func(ipam.Hold) error { return nil })
		_ = l.Attachments(func(ipam.AttachmentRecord) error { return nil })
		_, _ = l.Pools()
		_, _, _ = l.Users(ipam.Uses{Parent: "eth1", VLAN: 5}, 0)
		_, _ = l.Allocate(request(p, "new"), nil)
		_, _ = l.Release(ipam.ReleaseRequest{Attachment: att("user")})
		_, _ = l.Check()
		_ = l.Close()
	})
}
