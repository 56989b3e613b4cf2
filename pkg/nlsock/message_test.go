package nlsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attr is one attribute with its padding.
func attr(kind int, value ...byte) []byte { return nl.NewRtAttr(kind, value).Serialize() }

func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	// An odd length, since the words stand behind the padding.
	request := message(unix.RTM_NEWROUTE, 0, 7, []byte("12345"))
	words := attr(unix.NLMSGERR_ATTR_MSG, []byte("Nexthop has invalid gateway\x00")...)
	offset := attr(unix.NLMSGERR_ATTR_OFFS, 0, 0, 0, 0)
	padding := make([]byte, Align(len(request))-len(request))
	full, capped := join(request, padding), request[:unix.NLMSG_HDRLEN]
	long := join(full)
	binary.NativeEndian.PutUint32(long, 1<<32-1)
	tests := []struct {
		name        string
		kind, flags uint16
		code        unix.Errno
		rest        []byte
		want        string
	}{
		{"success", unix.NLMSG_ERROR, unix.NLM_F_CAPPED, 0, capped, ""},
		{"success with a warning", unix.NLMSG_ERROR, unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS, 0, join(capped, words), ""},
		{"number", unix.NLMSG_ERROR, 0, unix.EPERM, full, "operation not permitted"},
		{"number alone", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.EPERM, nil, "operation not permitted"},
		{"words", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.ENETUNREACH, join(full, offset, words), "network is unreachable: Nexthop has invalid gateway"},
		{"words behind a header", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED, unix.ENETUNREACH, join(capped, words), "network is unreachable: Nexthop has invalid gateway"},
		{"words without padding", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.ENETUNREACH, join(full, attr(unix.NLMSGERR_ATTR_MSG, 'n', 'o')[:6]), "network is unreachable: no"},
		{"words are cut off", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.ENETUNREACH, join(full, words[:9]), "network is unreachable"},
		{"another attribute", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.EINVAL, join(full, offset), "invalid argument"},
		{"request is cut off", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.EINVAL, full[:18], "invalid argument"},
		{"request without end", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.EINVAL, long, "invalid argument"},
		{"request shorter than its header", unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, unix.EINVAL, make([]byte, 32), "invalid argument"},
		{"list", unix.NLMSG_DONE, unix.NLM_F_MULTI, 0, nil, ""},
		{"list is refused", unix.NLMSG_DONE, unix.NLM_F_MULTI, unix.ENODEV, nil, "no such device"},
		{"list is refused with words", unix.NLMSG_DONE, unix.NLM_F_ACK_TLVS, unix.EINVAL, words, "invalid argument: Nexthop has invalid gateway"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			body := append(errno(tt.code), tt.rest...)
			err := verdict(unix.NlMsghdr{Type: tt.kind, Flags: tt.flags}, body)
			wantError(t, err, tt.want)
			if tt.code != 0 && !errors.Is(err, tt.code) {
				t.Errorf("%v is not %v", err, tt.code)
			}
			// However little has come, the number is what it was.
			for n := 4; n < len(body); n++ {
				if err := verdict(unix.NlMsghdr{Type: tt.kind, Flags: tt.flags}, body[:n:n]); tt.code == 0 && err != nil || tt.code != 0 && !errors.Is(err, tt.code) {
					t.Errorf("of %d octets: %v, want %v", n, err, tt.code)
				}
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		b    []byte
		want string
		err  error
	}{
		{name: "none"},
		{name: "two", b: join(attr(1, 'a'), attr(2, 'b', 'c', 'd', 'e')), want: "1:a 2:bcde "},
		{name: "last without padding", b: attr(1, 'a')[:5], want: "1:a "},
		{name: "empty value", b: attr(3), want: "3: "},
		{name: "nested", b: attr(unix.NLA_F_NESTED|1, 'a'), want: "1:a "},
		{name: "less than a header at the end", b: join(attr(1, 'a'), []byte{9, 9, 9}), want: "1:a "},
		{name: "cut off", b: attr(1, 'a', 'b')[:5], err: ErrCutOff},
		{name: "shorter than its header", b: []byte{3, 0, 1, 0}, err: ErrCutOff},
		{name: "no length", b: make([]byte, 8), err: ErrCutOff},
	}
	for _, tt := range tests {
		got, err := Attributes(tt.b[:len(tt.b):len(tt.b)])
		s := ""
		for _, a := range got {
			s += fmt.Sprintf("%d:%s ", a.Kind, a.Value)
		}
		if s != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %q, %v, want %q, %v", tt.name, s, err, tt.want, tt.err)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(message(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 1, join(errno(unix.EINVAL), message(16, 1, 1, nil), attr(unix.NLMSGERR_ATTR_MSG, 'n', 'o'))))
	f.Add(message(unix.RTM_NEWLINK, 0, 1, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b):len(b)] // so that what lies behind cannot hide a panic
		if len(b) < unix.NLMSG_HDRLEN {
			return
		}
		h, body := header(b), b[unix.NLMSG_HDRLEN:]
		err := verdict(h, body)
		bad := len(body) < 4 && h.Type == unix.NLMSG_ERROR || len(body) >= 4 && int32(binary.NativeEndian.Uint32(body)) < 0
		if bad != (err != nil) {
			t.Errorf("verdict %v", err)
		}
		for m, err := range messages(b) {
			if err == nil && int(m.Len) != unix.NLMSG_HDRLEN+len(m.Body) {
				t.Errorf("a message of %d octets says that it has %d", unix.NLMSG_HDRLEN+len(m.Body), m.Len)
			}
		}
	})
}
