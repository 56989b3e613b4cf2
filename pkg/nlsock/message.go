package nlsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// Message is one message of a datagram.
type Message struct {
	unix.NlMsghdr
	Body []byte
}

// messages splits a datagram, up to the first error.
func messages(b []byte) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			h := header(b)
			if h.Len < unix.NLMSG_HDRLEN || int64(h.Len) > int64(len(b)) {
				yield(Message{}, ErrCutOff)
				return
			}
			if !yield(Message{h, b[unix.NLMSG_HDRLEN:h.Len]}, nil) {
				return
			}
			b = b[min(len(b), Align(int(h.Len))):]
		}
	}
}

func header(b []byte) unix.NlMsghdr {
	o := binary.NativeEndian
	return unix.NlMsghdr{Len: o.Uint32(b), Type: o.Uint16(b[4:]), Flags: o.Uint16(b[6:]), Seq: o.Uint32(b[8:]), Pid: o.Uint32(b[12:])}
}

// Align is the length that n octets take up in a message.
func Align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// ErrCutOff is returned for an answer that is shorter than it says.
var ErrCutOff = errors.New("the kernel's answer is cut off")

// verdict reads the message that ends an exchange: a negative errno or 0, in
// an error followed by the request, and words about it where the kernel has
// any.
func verdict(h unix.NlMsghdr, body []byte) error {
	if len(body) < 4 {
		if h.Type == unix.NLMSG_ERROR {
			return ErrCutOff
		}
		return nil // the end of a list, without more ado
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code >= 0 {
		return nil
	}
	err := unix.Errno(-code)
	if h.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return err
	}
	rest := body[4:]
	if h.Type == unix.NLMSG_ERROR {
		// The request follows, or only its header.
		if len(rest) < unix.NLMSG_HDRLEN {
			return err
		}
		request := uint64(unix.NLMSG_HDRLEN)
		if h.Flags&unix.NLM_F_CAPPED == 0 {
			request = uint64(header(rest).Len)
		}
		if request < unix.NLMSG_HDRLEN || request > uint64(len(rest)) {
			return err
		}
		rest = rest[min(len(rest), Align(int(request))):]
	}
	words, _ := Attributes(rest) // the errno says the most of it
	for _, a := range words {
		if a.Kind == unix.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w: %s", err, unix.ByteSliceToString(a.Value))
		}
	}
	return err
}

// Attribute is one of the typed values that follow a message's fixed part.
type Attribute struct {
	Kind  uint16 // without the flags for nesting and byte order
	Value []byte
}

// Attributes splits b. The library's own function panics where the last one
// lacks its padding.
func Attributes(b []byte) (out []Attribute, err error) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return out, ErrCutOff
		}
		kind := binary.NativeEndian.Uint16(b[2:]) & (1<<14 - 1) // NLA_TYPE_MASK
		out = append(out, Attribute{kind, b[unix.SizeofNlAttr:size]})
		b = b[min(len(b), Align(size)):]
	}
	return out, nil
}
