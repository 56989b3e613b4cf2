package record

import (
	"fmt"
	"net/netip"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// BlockVersion is that of the form of Block.
const BlockVersion = 1

// Block is what the ledger keeps of a block of a cluster pool. The records of
// its addresses say which of them are in use.
type Block struct {
	CIDR netip.Prefix
	// Rev is that of lease.Book.
	Rev lease.Rev
	// Mine has a bit for each address from the first on that is the node's,
	// and not on its way out.
	Mine []byte
	// Giving are on their way out.
	Giving map[netip.Addr]lease.Entry
}

// index is the number of an address in the block.
func (b *Block) index(a netip.Addr) int {
	x, y := a.AsSlice(), b.CIDR.Addr().AsSlice()
	n := 0
	for i := max(0, len(x)-3); i < len(x); i++ { // blocks are smaller than that
		n = n<<8 | int(x[i]-y[i])
	}
	return n
}

// Has reports whether the address is the node's to give out.
func (b *Block) Has(a netip.Addr) bool {
	if !b.CIDR.Contains(a) {
		return false
	}
	i := b.index(a)
	return i/8 < len(b.Mine) && b.Mine[i/8]>>(i%8)&1 == 1
}

// Set makes it so.
func (b *Block) Set(a netip.Addr) {
	i := b.index(a)
	for len(b.Mine) <= i/8 {
		b.Mine = append(b.Mine, 0)
	}
	b.Mine[i/8] |= 1 << (i % 8)
}

// Each calls f with the addresses that Has is true of, in order.
func (b *Block) Each(f func(netip.Addr)) {
	a := b.CIDR.Addr()
	for i := range len(b.Mine) * 8 {
		if b.Mine[i/8]>>(i%8)&1 == 1 {
			f(a)
		}
		a = a.Next()
	}
}

// EncodeBlock returns the form of a block.
func EncodeBlock(b Block) []byte {
	w := writer{}
	w.number(BlockVersion)
	w.prefix(b.CIDR)
	w.signed(int64(b.Rev))
	w.text(string(b.Mine))
	w.number(uint64(len(b.Giving)))
	lease.Block{CIDR: b.CIDR}.Addrs(func(a netip.Addr) bool {
		if e, ok := b.Giving[a]; ok {
			w.addr(a)
			w.text(string(e.Node))
			w.text(e.Key)
			w.time(e.Since)
		}
		return true
	})
	return w.b
}

type giving struct {
	addr netip.Addr
	to   lease.Entry
}

// DecodeBlock is the inverse of EncodeBlock.
func DecodeBlock(value []byte) (b Block, err error) {
	d := reader{b: value}
	d.version(BlockVersion)
	b.CIDR = d.prefix()
	b.Rev = lease.Rev(d.signed())
	if mine := d.bytes(); len(mine) > 0 {
		b.Mine = append(b.Mine, mine...)
	}
	out := list(&d, func(d *reader) giving {
		return giving{d.addr(), lease.Entry{Node: lease.Node(d.text()), Key: d.text(), Since: d.time()}}
	})
	if err := d.end(); err != nil {
		return Block{}, err
	}
	if err := lease.ValidCIDR(b.CIDR); err != nil {
		return Block{}, err
	}
	size := lease.Block{CIDR: b.CIDR}.Size()
	if n := len(b.Mine) * 8; n > max(size, 8) || size < 8 && len(b.Mine) == 1 && b.Mine[0]>>size != 0 || len(b.Mine) > 0 && b.Mine[len(b.Mine)-1] == 0 {
		return Block{}, fmt.Errorf("%d bytes of marks for %d addresses", len(b.Mine), size)
	}
	if len(out) > 0 {
		b.Giving = make(map[netip.Addr]lease.Entry, len(out))
	}
	for _, g := range out {
		if _, twice := b.Giving[g.addr]; twice || !b.CIDR.Contains(g.addr) || b.Has(g.addr) {
			return Block{}, fmt.Errorf("%s cannot be on its way out", g.addr)
		}
		b.Giving[g.addr] = g.to
	}
	return b, nil
}

// EncodePast returns the form of what the ledger remembers of the registry.
func EncodePast(p lease.Past) []byte {
	w := writer{}
	w.number(BlockVersion)
	w.text(p.Cluster)
	w.number(uint64(p.Epoch.Number))
	w.text(p.Epoch.ID)
	w.signed(int64(p.Rev))
	return w.b
}

// DecodePast is the inverse of EncodePast.
func DecodePast(value []byte) (p lease.Past, err error) {
	d := reader{b: value}
	d.version(BlockVersion)
	p.Cluster = d.text()
	p.Epoch = lease.Epoch{Number: int(d.number()), ID: d.text()}
	p.Rev = lease.Rev(d.signed())
	return p, d.end()
}
