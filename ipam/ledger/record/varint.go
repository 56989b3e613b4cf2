package record

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// writer appends fields.
type writer struct{ b []byte }

func (w *writer) number(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) signed(n int64)  { w.b = binary.AppendVarint(w.b, n) }

func (w *writer) text(s string) {
	w.number(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) flag(yes bool) {
	n := uint64(0)
	if yes {
		n = 1
	}
	w.number(n)
}

// reader takes fields off. After the first error all that follows is zero,
// and end tells it.
type reader struct {
	b   []byte
	err error
}

func (d *reader) fail(why string) {
	if d.err == nil {
		d.err = errors.New(why)
	}
	d.b = nil
}

// end says what was wrong.
func (d *reader) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("there is more than a record")
	}
	return d.err
}

// version reads the version of a form that is known up to latest.
func (d *reader) version(latest int) int {
	v := d.small()
	if v > latest {
		d.fail(fmt.Sprintf("version %d, of a newer underlay; this one knows %d", v, latest))
	}
	if v < 1 {
		d.fail("it has no version")
	}
	return v
}

func (d *reader) number() uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		d.fail("it is cut off")
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *reader) signed() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.fail("it is cut off")
		return 0
	}
	d.b = d.b[size:]
	return n
}

// small is a number that counts or names something.
func (d *reader) small() int { return d.upTo(1 << 16) }

func (d *reader) upTo(most uint64) int {
	n := d.number()
	if n > most {
		d.fail("a number is too large")
		return 0
	}
	return int(n)
}

func (d *reader) flag() bool { return d.number() == 1 }

func (d *reader) bytes() []byte {
	n := d.number()
	if n > uint64(len(d.b)) {
		d.fail("it is cut off")
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *reader) text() string { return string(d.bytes()) }

// list reads a count and as many elements; nil for none.
func list[T any](d *reader, element func(*reader) T) (out []T) {
	n := d.number()
	if n > uint64(len(d.b)) { // each takes a byte at least
		d.fail("it is cut off")
		return nil
	}
	for range n {
		if d.err != nil {
			return nil
		}
		out = append(out, element(d))
	}
	return out
}
