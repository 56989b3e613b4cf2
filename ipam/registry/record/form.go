package record

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/underlay-cni/underlay/ipam/lease"
)

// form reads a value in the one form that encode writes, from left to right, in
// a small part of the time that it takes to look at any JSON: a thousand agents
// that start read a million records of blocks and nodes. It knows less than
// decode, and says no to all that it does not know; then decode has the word.
type form struct {
	rest string
	no   bool
}

// is passes over a text that has to be there.
func (f *form) is(text string) { f.no = !f.has(text) || f.no }

// has passes over a text if it is there.
func (f *form) has(text string) (ok bool) {
	f.rest, ok = strings.CutPrefix(f.rest, text)
	return ok
}

// text reads a string without escapes, of ASCII.
func (f *form) text() string {
	if !f.has(`"`) {
		f.no = true
		return ""
	}
	for i := range len(f.rest) {
		switch c := f.rest[i]; {
		case c == '"':
			text := f.rest[:i]
			f.rest = f.rest[i+1:]
			return text
		case c < ' ' || c > '~' || c == '\\':
			f.no = true
			return ""
		}
	}
	f.no = true
	return ""
}

// number reads one that is not negative.
func (f *form) number() int {
	digits := 0
	for digits < len(f.rest) && f.rest[digits] >= '0' && f.rest[digits] <= '9' {
		digits++
	}
	n, err := strconv.Atoi(f.rest[:digits])
	f.no = f.no || err != nil || digits > 1 && f.rest[0] == '0'
	f.rest = f.rest[digits:]
	return n
}

// addr reads an address in its one form.
func (f *form) addr() netip.Addr {
	text := f.text()
	a, err := netip.ParseAddr(text)
	f.no = f.no || err != nil || a.String() != text
	return a
}

// end reports whether all was as it has to be, up to the end.
func (f *form) end() bool {
	f.is("}")
	return !f.no && f.rest == ""
}

func formOfNode(value []byte) (n Node, ok bool) {
	f := form{rest: string(value)}
	f.is(`{"version":1,"node":`)
	n.Version, n.Node = Version, lease.Node(f.text())
	f.is(`,"name":`)
	n.Name = f.text()
	if f.has(`,"machine":`) {
		n.Machine = f.text()
	}
	if f.has(`,"boot":`) {
		n.Boot = f.text()
	}
	if f.has(`,"folder":`) {
		n.Folder = f.text()
	}
	if f.has(`,"addresses":[`) {
		for more := true; more && !f.no; more = f.has(`,`) {
			n.Addresses = append(n.Addresses, f.addr())
		}
		f.is(`]`)
	}
	f.is(`,"asserted":`)
	n.Asserted = f.number()
	return n, f.end()
}

func formOfBlock(value []byte) (b lease.Block, ok bool) {
	f := form{rest: string(value)}
	f.is(`{"version":1,"cidr":`)
	text := f.text()
	cidr, err := netip.ParsePrefix(text)
	if err != nil || cidr.String() != text {
		return b, false
	}
	b.CIDR = cidr
	if f.has(`,"owner":`) {
		b.Owner = lease.Node(f.text())
	}
	if f.has(`,"given":{`) {
		b.Given = map[netip.Addr]lease.Entry{}
		for more := true; more && !f.no; more = f.has(`,`) {
			a := f.addr()
			f.is(`:{`)
			var e lease.Entry
			key := `"key":`
			if f.has(`"node":`) {
				e.Node, key = lease.Node(f.text()), `,"key":`
			}
			if f.has(key) {
				e.Key = f.text()
			}
			f.is(`}`) // what was parked has a time, and is left to decode
			if _, twice := b.Given[a]; twice {
				return b, false
			}
			b.Given[a] = e
		}
		f.is(`}`)
	}
	return b, f.end() && checkBlock(b) == nil
}
