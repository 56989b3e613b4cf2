package nlsock

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNoInterface is returned when there is no interface of that name or index.
var ErrNoInterface = errors.New("no such interface")

// Names translates between the names of interfaces, which people write, and
// their indexes, which the kernel writes. It asks for each once, until it is
// told to forget.
type Names struct {
	conn  *Conn
	index map[string]int
	name  map[int]string
}

// NewNames asks through c, which it shares with its owner.
func NewNames(c *Conn) *Names {
	n := &Names{conn: c}
	n.Forget()
	return n
}

// Forget is called before what may have changed meanwhile is read anew.
func (n *Names) Forget() { n.index, n.name = make(map[string]int), make(map[int]string) }

// Index is the index of an interface; the error wraps ErrNoInterface when
// there is none.
func (n *Names) Index(name string) (int, error) {
	if i, ok := n.index[name]; ok {
		return i, nil
	}
	i, _, err := n.ask(0, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err != nil {
		return 0, fmt.Errorf("look up interface %q: %w", name, err)
	}
	n.index[name] = i
	return i, nil
}

// Name is the name of an interface; the error wraps ErrNoInterface when there
// is none.
func (n *Names) Name(index int) (string, error) {
	if s, ok := n.name[index]; ok {
		return s, nil
	}
	_, s, err := n.ask(index)
	if err != nil {
		return "", fmt.Errorf("look up interface %d: %w", index, err)
	}
	n.name[index] = s
	return s, nil
}

func (n *Names) ask(index int, key ...nl.NetlinkRequestData) (int, string, error) {
	req := linkRequest(unix.RTM_GETLINK, index)
	req.Data = append(req.Data, key...)
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	payload, err := n.conn.Get(req)
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL): // not a name, not an index
		return 0, "", ErrNoInterface
	case err != nil:
		return 0, "", err
	case len(payload) < unix.SizeofIfInfomsg:
		return 0, "", ErrCutOff
	}
	attrs, err := Attributes(payload[unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		if a.Kind == unix.IFLA_IFNAME {
			return int(nl.DeserializeIfInfomsg(payload).Index), unix.ByteSliceToString(a.Value), nil
		}
	}
	return 0, "", errors.Join(errors.New("the answer has no name"), err)
}

func linkRequest(kind, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}
