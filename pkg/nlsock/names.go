package nlsock

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNoInterface is returned when there is no interface of that name or index.
var ErrNoInterface = errors.New("no such interface")

// Names translates between the names of interfaces, which people write, and
// their indexes, which the kernel writes. It asks for each once, until it is
// told to forget.
type Names struct {
	conn *Conn

	mu          sync.Mutex
	now, before known
}

// known is what has been asked for; 0 and "" if there was no such interface.
type known struct {
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
func (n *Names) Forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.before, n.now = n.now, known{make(map[string]int), make(map[int]string)}
}

// Index is the index of an interface; the error wraps ErrNoInterface when
// there is none.
func (n *Names) Index(name string) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	index, asked := n.now.index[name]
	var err error
	if !asked {
		index, _, err = n.ask(0, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
		if err == nil {
			n.now.index[name] = index
		}
	}
	if err == nil && index == 0 {
		err = ErrNoInterface
	}
	if err != nil {
		return 0, fmt.Errorf("look up interface %q: %w", name, err)
	}
	return index, nil
}

// Name is the name of an interface; the error wraps ErrNoInterface when there
// is none.
func (n *Names) Name(index int) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, asked := n.now.name[index]
	var err error
	if !asked {
		_, name, err = n.ask(index)
		if err == nil {
			n.now.name[index] = name
		}
	}
	if err == nil && name == "" {
		err = ErrNoInterface
	}
	if err != nil {
		return "", fmt.Errorf("look up interface %d: %w", index, err)
	}
	return name, nil
}

// Knows reports whether an interface, or one of that name, has been asked for
// of late, so that news of it may matter. Unlike the rest of Names, it may be
// called at the same time as anything.
func (n *Names) Knows(index int, name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range []known{n.now, n.before} {
		for _, i := range k.index {
			if i == index {
				return true
			}
		}
		_, byName := k.index[name]
		if _, byIndex := k.name[index]; byIndex || byName {
			return true
		}
	}
	return false
}

// KnowsLink is Knows for the interface that a message, RTM_NEWLINK or
// RTM_DELLINK, is about.
func (n *Names) KnowsLink(m Message) bool {
	index, name, err := parseLink(m.Body)
	return err != nil || n.Knows(index, name)
}

func (n *Names) ask(index int, key ...nl.NetlinkRequestData) (int, string, error) {
	req := linkRequest(unix.RTM_GETLINK, index)
	req.Data = append(req.Data, key...)
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	payload, err := n.conn.Get(req)
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL): // not a name, not an index
		return 0, "", nil
	case err != nil:
		return 0, "", err
	}
	return parseLink(payload)
}

// parseLink reads of RTM_NEWLINK what an interface is called.
func parseLink(payload []byte) (index int, name string, err error) {
	if len(payload) < unix.SizeofIfInfomsg {
		return 0, "", ErrCutOff
	}
	attrs, err := Attributes(payload[unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		if a.Kind == unix.IFLA_IFNAME {
			name = unix.ByteSliceToString(a.Value)
		}
	}
	return int(nl.DeserializeIfInfomsg(payload).Index), name, err
}

func linkRequest(kind, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}
