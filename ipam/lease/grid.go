package lease

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/underlay-cni/underlay/ipam"
)

// Grid numbers the blocks of a range set, without listing them: an IPv6
// subnet has more than fit in memory.
type Grid struct {
	bits  int
	spans []span
	n     uint64
}

// span is a range with the blocks that begin in it; a block that an earlier
// span has already is left out.
type span struct {
	ipam.Range
	first netip.Addr // of the first block
	from  uint64     // number of the first block
	n     uint64
}

// NewGrid cuts a range set into blocks of a prefix length.
func NewGrid(set ipam.RangeSet, length int) (Grid, error) {
	g := Grid{bits: length}
	sorted := slices.Clone(set)
	slices.SortFunc(sorted, func(a, b ipam.Range) int { return a.First.Compare(b.First) })
	var covered netip.Addr // last block so far
	for _, r := range sorted {
		p := netip.PrefixFrom(r.First, length).Masked()
		if err := ValidCIDR(p); err != nil {
			return Grid{}, err
		}
		if length < r.Subnet.Bits() {
			return Grid{}, fmt.Errorf("blocks of /%d do not fit into %s", length, r.Subnet)
		}
		last := netip.PrefixFrom(r.Last, length).Masked().Addr()
		s := span{Range: r, first: p.Addr(), from: g.n, n: g.between(p.Addr(), last) + 1}
		if s.first == covered {
			if s.n--; s.n == 0 {
				continue
			}
			s.first = g.add(s.first, 1)
		}
		covered = last
		g.spans = append(g.spans, s)
		g.n += s.n
	}
	return g, nil
}

// Len counts the blocks. A range of more than 1<<60 counts as that many.
func (g Grid) Len() uint64 { return g.n }

// Block returns the block of a number below Len.
func (g Grid) Block(i uint64) netip.Prefix {
	for _, s := range g.spans {
		if i < s.from+s.n {
			return netip.PrefixFrom(g.add(s.first, i-s.from), g.bits)
		}
	}
	panic(fmt.Sprintf("block %d of %d", i, g.n))
}

// Contains reports whether p is one of the blocks.
func (g Grid) Contains(p netip.Prefix) bool {
	if p.Bits() != g.bits || p.Masked() != p {
		return false
	}
	return slices.ContainsFunc(g.spans, func(s span) bool {
		return s.first.Is4() == p.Addr().Is4() && s.first.Compare(p.Addr()) <= 0 && p.Addr().Compare(s.Last) <= 0
	})
}

// Choose returns the first block from number start on, going round once, that
// has an address to give out and is not taken. It takes a step for each taken
// block on its way and for each exclusion, however many blocks there are.
func (g Grid) Choose(start uint64, taken func(netip.Prefix) bool) (netip.Prefix, bool) {
	if g.n == 0 {
		return netip.Prefix{}, false
	}
	start %= g.n
	for i, end := range [2]uint64{g.n, start} {
		at := start
		if i == 1 {
			at = 0
		}
		for {
			j, ok := g.usableFrom(at)
			if !ok || j >= end {
				break
			}
			if p := g.Block(j); !taken(p) {
				return p, true
			}
			at = j + 1
		}
	}
	return netip.Prefix{}, false
}

// usableFrom returns the first block from number i on that has an address
// which is not excluded.
func (g Grid) usableFrom(i uint64) (uint64, bool) {
	for _, s := range g.spans {
		if i >= s.from+s.n {
			continue
		}
		if a, ok := s.From(g.add(s.first, max(i, s.from)-s.from)); ok {
			p := netip.PrefixFrom(a, g.bits).Masked()
			return s.from + g.between(s.first, p.Addr()), true
		}
	}
	return 0, false
}

// between counts the blocks from a to b, both of them first addresses.
func (g Grid) between(a, b netip.Addr) uint64 {
	ah, al := halves(a)
	bh, bl := halves(b)
	lo, borrow := bits.Sub64(bl, al, 0)
	hi, _ := bits.Sub64(bh, ah, borrow)
	shift := a.BitLen() - g.bits
	if hi>>shift != 0 {
		return 1<<60 - 1
	}
	return min(lo>>shift|hi<<(64-shift), 1<<60-1)
}

// add goes n blocks on from a.
func (g Grid) add(a netip.Addr, n uint64) netip.Addr {
	shift := a.BitLen() - g.bits
	hi, lo := halves(a)
	lo, carry := bits.Add64(lo, n<<shift, 0)
	hi, _ = bits.Add64(hi, n>>(64-shift), carry)
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	if a.Is4() {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

func halves(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// Rotation is a number that differs from node to node and from attempt to
// attempt, so that many nodes which look for something at the same moment
// begin to look in different places.
func Rotation(n Node, about string, attempt int) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\n%s\n%d", n, about, attempt)
	// FNV's low bits alone are too regular for a remainder.
	x := h.Sum64()
	x ^= x >> 32
	x *= 0x9e3779b97f4a7c15
	return x ^ x>>29
}
