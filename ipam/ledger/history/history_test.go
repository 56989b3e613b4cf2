package history

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger/record"
)

// bucket is one in memory.
type bucket struct{ keys, values []string }

func (b *bucket) at(i int) (k, v []byte) {
	if i < 0 || i >= len(b.keys) {
		return nil, nil
	}
	return []byte(b.keys[i]), []byte(b.values[i])
}

func (b *bucket) Seek(key []byte) (k, v []byte) {
	return b.at(sort.SearchStrings(b.keys, string(key)))
}
func (b *bucket) Last() (k, v []byte) { return b.at(len(b.keys) - 1) }

func (b *bucket) Put(key, value []byte) error {
	i, found := slices.BinarySearch(b.keys, string(key))
	if found {
		return errors.New("it is there already")
	}
	b.keys, b.values = slices.Insert(b.keys, i, string(key)), slices.Insert(b.values, i, string(value))
	return nil
}

func (b *bucket) Delete(key []byte) error {
	i, found := slices.BinarySearch(b.keys, string(key))
	if !found {
		return errors.New("it is not there")
	}
	b.keys, b.values = slices.Delete(b.keys, i, i+1), slices.Delete(b.values, i, i+1)
	return nil
}

func hold(id, addr string, until int64) ipam.Hold {
	return ipam.Hold{Address: netip.MustParseAddr(addr), Attachment: ipam.Attachment{Network: "lan", ContainerID: id, IfName: "eth0"},
		Since: time.Unix(until-10, 0).UTC(), Until: time.Unix(until, 0).UTC()}
}

func list(t *testing.T, l Log, addr netip.Addr) (ids []string) {
	t.Helper()
	err := l.Of(addr, func(h ipam.Hold) error {
		ids = append(ids, h.Attachment.ContainerID)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestLog(t *testing.T) {
	t.Parallel()
	l := Log{Bucket: &bucket{}}
	if n, err := l.Count(); n != 0 || err != nil {
		t.Errorf("%d holds, %v", n, err)
	}
	// The clock goes back in the middle.
	holds := []ipam.Hold{hold("a", "10.0.0.1", 100), hold("b", "2001:db8::1", 110), hold("c", "10.0.0.1", 50), hold("d", "10.0.0.1", 50)}
	for _, h := range holds {
		if err := l.Add(h); err != nil {
			t.Fatal(err)
		}
	}
	var got []ipam.Hold
	if err := l.Of(netip.Addr{}, func(h ipam.Hold) error { got = append(got, h); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(holds, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("holds (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a", "c", "d"}, list(t, l, netip.MustParseAddr("10.0.0.1"))); diff != "" {
		t.Errorf("of one address (-want +got):\n%s", diff)
	}
	stop := errors.New("stop")
	if err := l.Of(netip.Addr{}, func(ipam.Hold) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped with %v", err)
	}
}

// There are never more than Most, and the last ones are there.
func TestMost(t *testing.T) {
	t.Parallel()
	for _, most := range []int{1, 2, 7, 300} {
		l := Log{Bucket: &bucket{}, Most: most}
		for i := range 3 * most {
			if err := l.Add(hold(fmt.Sprint(i), "10.0.0.1", int64(i))); err != nil {
				t.Fatal(err)
			}
			n, err := l.Count()
			if err != nil || n > most || n < min(i+1, most-most/128) {
				t.Fatalf("%d holds after %d of at most %d, %v", n, i+1, most, err)
			}
			ids := list(t, l, netip.Addr{})
			if len(ids) != n || ids[n-1] != fmt.Sprint(i) || ids[0] != fmt.Sprint(i+1-n) {
				t.Fatalf("%d holds: %v", n, ids)
			}
		}
	}
}

func TestBroken(t *testing.T) {
	t.Parallel()
	for name, entry := range map[string][2]string{
		"short key":  {"1234567", ""},
		"no address": {"12345678", ""},
		"bad family": {"123456785\x0a\x00\x00\x01", ""},
	} {
		l := Log{Bucket: &bucket{keys: []string{entry[0]}, values: []string{entry[1]}}}
		_, count := l.Count()
		for what, err := range map[string]error{"count": count, "add": l.Add(hold("a", "10.0.0.1", 1)), "of": l.Of(netip.Addr{}, nil)} {
			if !errors.Is(err, ErrBroken) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
	}
	a := netip.MustParseAddr("10.0.0.1")
	if _, _, err := Decode(key(1, a), []byte("?")); !errors.Is(err, ErrBroken) {
		t.Errorf("bad value: %v", err)
	}
}

// FuzzDecode: what can be decoded comes back the same.
func FuzzDecode(f *testing.F) {
	h := hold("a", "10.0.0.1", 100)
	f.Add(key(7, h.Address), record.EncodeHold(h))
	f.Add(key(1<<40, netip.MustParseAddr("2001:db8::1")), record.EncodeHold(ipam.Hold{}))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, k, v []byte) {
		n, h, err := Decode(k, v)
		if err != nil {
			if !errors.Is(err, ErrBroken) {
				t.Error(err)
			}
			return
		}
		if again := key(n, h.Address); !bytes.Equal(k, again) {
			t.Errorf("key %x comes back as %x", k, again)
		}
		_, again, err := Decode(k, record.EncodeHold(h))
		if err != nil || again != h {
			t.Errorf("%+v comes back as %+v, %v", h, again, err)
		}
	})
}
