package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// What follows is the layout of bbolt's file format, version 2. Numbers are
// in the byte order of the machine.
//
//	page     id u64, flags u16, count u16, overflow u32, elements, keys and values
//	branch   element: pos u32, ksize u32, pgid u64
//	leaf     element: flags u32, pos u32, ksize u32, vsize u32
//	bucket   (a leaf's value) root pgid u64, sequence u64; root 0: a page follows
//	meta     magic, version, pagesize, flags u32, root bucket, freelist, pgid, txid, checksum u64
//
// pos counts from the element that it stands in.
const (
	pageHeader   = 16
	element      = 16
	bucketHeader = 16
	metaSum      = 56 // bytes of a meta that its checksum covers

	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10
	bucketFlag   = 0x01

	magic   = 0xED0CDAED
	version = 2
)

var order = binary.NativeEndian

// Verify reads all pages that are in use, without bbolt and without the
// mapping, and returns ErrCorrupt with what is wrong first: a page that is
// not what it is referred to as, or lies outside, or has two uses; an element
// that points out of its page; keys out of order. On a file that passes,
// bbolt comes to an end wherever it looks.
func (f *File) Verify() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return verify(f.file, true)
}

// verify does the same; without all, for the pages alone that bbolt reads to
// open the file: a bad length there has it allocate without end.
func verify(f *os.File, all bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w := walk{r: f, size: info.Size(), used: map[uint64]bool{0: true, 1: true}}
	if err := w.file(all); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

type walk struct {
	r    io.ReaderAt
	size int64
	end  uint64 // the high-water mark: the first page never used
	used map[uint64]bool
}

func (w *walk) file(all bool) error {
	meta, err := w.meta()
	if err != nil {
		return err
	}
	w.end = order.Uint64(meta[40:])
	if has := uint64(w.size / pageSize); w.end > has {
		return fmt.Errorf("it is cut off after %d of %d pages", has, w.end)
	}
	if all {
		if err := w.tree(order.Uint64(meta[16:]), nil, nil); err != nil {
			return err
		}
	}
	return w.freelist(order.Uint64(meta[32:]))
}

// meta returns the younger one of the two that is whole.
func (w *walk) meta() ([]byte, error) {
	var best []byte
	for i := range int64(2) {
		page := make([]byte, pageSize)
		if _, err := w.r.ReadAt(page, i*pageSize); err != nil {
			return nil, fmt.Errorf("read page %d: %w", i, err)
		}
		m := page[pageHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:metaSum])
		switch {
		case order.Uint32(m) != magic, order.Uint32(m[4:]) != version, order.Uint32(m[8:]) != pageSize:
		case sum.Sum64() != order.Uint64(m[metaSum:]):
		case best == nil, order.Uint64(m[48:]) > order.Uint64(best[48:]):
			best = m
		}
	}
	if best == nil {
		return nil, errors.New("neither of its two head pages is whole")
	}
	return best, nil
}

// page reads a page with its overflow and marks it as used.
func (w *walk) page(id uint64) (page []byte, err error) {
	head := make([]byte, pageHeader)
	if id >= w.end {
		return nil, fmt.Errorf("page %d lies beyond the last, %d", id, w.end)
	}
	if _, err := w.r.ReadAt(head, int64(id)*pageSize); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	if got := order.Uint64(head); got != id {
		return nil, fmt.Errorf("page %d says it is %d", id, got)
	}
	n := uint64(order.Uint32(head[12:])) + 1
	if id+n > w.end {
		return nil, fmt.Errorf("page %d is %d pages long and reaches beyond the last, %d", id, n, w.end)
	}
	for i := id; i < id+n; i++ {
		if w.used[i] {
			return nil, fmt.Errorf("page %d has two uses", i)
		}
		w.used[i] = true
	}
	page = make([]byte, n*pageSize)
	if _, err := w.r.ReadAt(page, int64(id)*pageSize); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	return page, nil
}

// tree walks the pages below id, whose keys must be in [low, high); nil
// stands for no bound.
func (w *walk) tree(id uint64, low, high []byte) error {
	page, err := w.page(id)
	if err != nil {
		return err
	}
	if err := w.elements(page, low, high); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (w *walk) elements(page, low, high []byte) error {
	flags, count := order.Uint16(page[8:]), int(order.Uint16(page[10:]))
	if flags != branchPage && flags != leafPage {
		return fmt.Errorf("is of kind %#x, not one with keys", flags)
	}
	if flags == branchPage && count == 0 {
		return errors.New("branches to nowhere")
	}
	if pageHeader+count*element > len(page) {
		return fmt.Errorf("cannot hold %d elements", count)
	}
	branch := flags == branchPage
	var last []byte
	for i := range count {
		key, value, err := entry(page, i, branch)
		switch {
		case err != nil:
			return err
		case last != nil && bytes.Compare(last, key) >= 0,
			// The first branch key may lag behind what is below it.
			low != nil && bytes.Compare(key, low) < 0,
			high != nil && bytes.Compare(key, high) >= 0:
			return fmt.Errorf("key %d is out of order", i)
		}
		last = key
		e := page[pageHeader+i*element:]
		switch {
		case branch:
			next := high
			if i+1 < count {
				if next, _, err = entry(page, i+1, true); err != nil {
					return err
				}
			}
			err = w.tree(order.Uint64(e[8:]), key, next)
		case order.Uint32(e)&bucketFlag != 0:
			err = w.bucket(value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry returns key and value of element i, or the reason why they are not
// inside of the page.
func entry(page []byte, i int, branch bool) (key, value []byte, err error) {
	at := pageHeader + i*element
	e := page[at:]
	pos, ksize, vsize := order.Uint32(e), order.Uint32(e[4:]), uint32(0)
	if !branch {
		pos, ksize, vsize = order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
	}
	from := uint64(at) + uint64(pos)
	to := from + uint64(ksize) + uint64(vsize)
	if ksize == 0 || to > uint64(len(page)) {
		return nil, nil, fmt.Errorf("element %d has no key inside of the page", i)
	}
	body := page[from:to]
	return body[:ksize], body[ksize:], nil
}

func (w *walk) bucket(value []byte) error {
	if len(value) < bucketHeader {
		return errors.New("a bucket is too short")
	}
	if root := order.Uint64(value); root != 0 {
		return w.tree(root, nil, nil)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != leafPage {
		return errors.New("a bucket has no page")
	}
	return w.elements(inline, nil, nil)
}

// freelist reads the list of free pages, which must name no page in use, or
// the next commit would write over it.
func (w *walk) freelist(id uint64) error {
	page, err := w.page(id)
	if err != nil {
		return err
	}
	ids, count := page[pageHeader:], uint64(order.Uint16(page[10:]))
	if order.Uint16(page[8:]) != freelistPage {
		return fmt.Errorf("page %d is not the list of free pages", id)
	}
	if count == 0xFFFF { // too many for the field: the first entry counts
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return fmt.Errorf("page %d cannot list %d free pages", id, count)
	}
	for ; count > 0; count, ids = count-1, ids[8:] {
		free := order.Uint64(ids)
		if free >= w.end || w.used[free] {
			return fmt.Errorf("page %d is listed as free, and is in use, listed twice or outside", free)
		}
		w.used[free] = true
	}
	return nil
}
