package wire

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"

	"github.com/underlay-cni/underlay/ipam"
)

// An ADD is what a plugin is waited for. Package encoding/json learns a type
// when it first meets it, which a process that lives for milliseconds pays for
// each time: more than a fourth of the whole exchange. So a request to allocate
// is written here by hand, and the answer to it is read by hand if it looks
// as the agent writes it. Everything else is left to encoding/json, which also
// is what the tests compare with.

// object writes a JSON object. The methods leave out zero values, as the tags
// of the types have it.
type object struct {
	b     []byte
	begun bool
}

func (o *object) key(k string) {
	if o.begun {
		o.b = append(o.b, ',')
	}
	o.begun = true
	o.b = append(append(append(o.b, '"'), k...), '"', ':')
}

// in writes an object or array as the value of a key.
func (o *object) in(k string, brackets string, f func(*object)) {
	o.key(k)
	o.nest(brackets, f)
}

func (o *object) nest(brackets string, f func(*object)) {
	outer := o.begun
	o.b, o.begun = append(o.b, brackets[0]), false
	f(o)
	o.b, o.begun = append(o.b, brackets[1]), outer
}

// item begins an element of an array.
func (o *object) item() {
	if o.begun {
		o.b = append(o.b, ',')
	}
	o.begun = true
}

func (o *object) text(k, s string) {
	if s != "" {
		o.key(k)
		o.quote(s)
	}
}

func (o *object) quote(s string) {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`"\<>&`, r) }) {
		q, _ := json.Marshal(s) // a string always has a form
		o.b = append(o.b, q...)
		return
	}
	o.b = append(append(append(o.b, '"'), s...), '"')
}

func (o *object) number(k string, n int64) {
	o.key(k)
	o.b = strconv.AppendInt(o.b, n, 10)
}

func (o *object) unsigned(k string, n uint64) {
	if n != 0 {
		o.key(k)
		o.b = strconv.AppendUint(o.b, n, 10)
	}
}

func (o *object) flag(k string, yes bool) {
	if yes {
		o.key(k)
		o.b = append(o.b, "true"...)
	}
}

func (o *object) addr(k string, a netip.Addr) {
	if a.IsValid() {
		o.text(k, a.String())
	}
}

func (o *object) list(k string, n int, element func(i int)) {
	if n == 0 {
		return
	}
	o.in(k, "[]", func(o *object) {
		for i := range n {
			o.item()
			element(i)
		}
	})
}

func (o *object) request(q *Request) {
	o.number("v", int64(q.Version))
	o.text("op", string(q.Op))
	o.number("deadline", q.Deadline)
	o.text("dataDir", q.DataDir)
	o.in("allocate", "{}", func(o *object) { o.allocate(q.Allocate) })
}

func (o *object) allocate(r *ipam.AllocateRequest) {
	o.in("attachment", "{}", func(o *object) {
		o.text("network", r.Attachment.Network)
		o.text("containerID", r.Attachment.ContainerID)
		o.text("ifName", r.Attachment.IfName)
	})
	o.in("pool", "{}", func(o *object) { o.pool(&r.Pool) })
	o.text("cluster", r.Cluster)
	o.routes(r.Routes)
	o.list("addresses", len(r.Addresses), func(i int) { o.quote(r.Addresses[i].String()) })
	o.list("places", len(r.Places), func(i int) { o.quote(r.Places[i]) })
	o.list("avoid", len(r.Avoid), func(i int) { o.quote(r.Avoid[i].String()) })
	o.text("mac", r.MAC)
	o.text("macPrefix", r.MACPrefix)
	o.text("owner", r.Owner)
	o.text("runtime", r.Runtime)
	if r.Netns != (ipam.Netns{}) {
		o.in("netns", "{}", func(o *object) {
			o.text("path", r.Netns.Path)
			o.unsigned("dev", r.Netns.Dev)
			o.unsigned("inode", r.Netns.Inode)
		})
	}
	if r.Uses != (ipam.Uses{}) {
		o.in("uses", "{}", func(o *object) {
			o.text("parent", r.Uses.Parent)
			o.number("vlan", int64(r.Uses.VLAN))
			o.flag("hostAccess", r.Uses.HostAccess)
			o.text("port", r.Uses.Port)
			o.text("network", r.Uses.Network)
			o.flag("masquerade", r.Uses.Masquerade)
			if s := r.Uses.Segment; s != (ipam.Segment{}) {
				o.in("segment", "{}", func(o *object) {
					o.number("vni", int64(s.VNI))
					o.number("port", int64(s.Port))
				})
			}
		})
	}
	o.text("wire", r.Wire)
	o.unsigned("token", r.Token)
}

func (o *object) pool(p *ipam.Pool) {
	o.text("name", p.Name)
	o.text("uuid", p.UUID)
	o.list("sets", len(p.Sets), func(i int) {
		o.nest("[]", func(o *object) {
			for _, r := range p.Sets[i] {
				o.item()
				o.nest("{}", func(o *object) { o.rng(r) })
			}
		})
	})
	o.routes(p.Routes)
	o.number("coolDown", int64(p.CoolDown))
	o.number("quarantine", int64(p.Quarantine))
	o.text("sticky", string(p.Sticky))
	o.number("stickyFor", int64(p.StickyFor))
}

func (o *object) rng(r ipam.Range) {
	o.text("subnet", r.Subnet.String())
	o.interval(r.Interval)
	o.addr("gateway", r.Gateway)
	o.list("exclude", len(r.Exclude), func(i int) {
		o.nest("{}", func(o *object) { o.interval(r.Exclude[i]) })
	})
	o.unsigned("blockPrefix", uint64(r.BlockBits))
}

func (o *object) routes(routes []ipam.Route) {
	o.list("routes", len(routes), func(i int) {
		o.nest("{}", func(o *object) {
			r := routes[i]
			o.text("dst", r.Dst.String())
			o.addr("gw", r.GW)
			o.number("mtu", int64(r.MTU))
			o.number("advmss", int64(r.AdvMSS))
			o.number("priority", int64(r.Priority))
			if r.Table != nil {
				o.number("table", int64(*r.Table))
			}
			if r.Scope != nil {
				o.number("scope", int64(*r.Scope))
			}
		})
	})
}

func (o *object) interval(i ipam.Interval) {
	o.addr("first", i.First)
	o.addr("last", i.Last)
}

// EncodeRequest returns the line of a request.
func EncodeRequest(q *Request) ([]byte, error) {
	if q.Op != OpAllocate {
		return Encode(q)
	}
	o := &object{b: make([]byte, 0, 1024)}
	o.nest("{}", func(o *object) { o.request(q) })
	return append(o.b, '\n'), nil
}

// reader reads what has one form only. After the first deviation bad is set,
// and what was read means nothing.
type reader struct {
	rest string
	bad  bool
}

// next takes what comes next, if it is that.
func (r *reader) next(s string) (ok bool) {
	r.rest, ok = strings.CutPrefix(r.rest, s)
	return ok
}

func (r *reader) must(s string) { r.bad = !r.next(s) || r.bad }

// text takes a string without escapes, after its opening quote.
func (r *reader) text() string {
	s, rest, ok := strings.Cut(r.rest, `"`)
	r.bad = r.bad || !ok || strings.Contains(s, `\`)
	r.rest = rest
	return s
}

// allocated reads the response to a request to allocate; ok is false if it is
// not the plain one of success. Of routes that is one with destination and next
// hop at most.
func allocated(line string) (a *Response, ok bool) {
	r := &reader{rest: strings.TrimSuffix(line, "\n")}
	r.must(`{"v":` + strconv.Itoa(Version) + `,"allocation":{`)
	out := &ipam.Allocation{}
	if r.next(`"addresses":[`) {
		for !r.bad {
			out.Addresses = append(out.Addresses, r.address())
			if !r.next(",") {
				break
			}
		}
		r.must("]")
		r.next(",")
	}
	if r.next(`"routes":[`) {
		for !r.bad {
			out.Routes = append(out.Routes, r.route())
			if !r.next(",") {
				break
			}
		}
		r.must("]")
		r.next(",")
	}
	if r.next(`"mac":"`) {
		out.MAC = r.text()
		r.next(",")
	}
	out.Known = r.next(`"known":true`)
	r.must("}}")
	return &Response{Version: Version, Allocation: out}, !r.bad && r.rest == ""
}

func (r *reader) address() (a ipam.Address) {
	r.must(`{"prefix":"`)
	a.Prefix = r.prefix()
	if r.next(`,"gateway":"`) {
		a.Gateway = r.addr()
	}
	r.must("}")
	return a
}

func (r *reader) route() (out ipam.Route) {
	r.must(`{"dst":"`)
	out.Dst = r.prefix()
	if r.next(`,"gw":"`) {
		out.GW = r.addr()
	}
	r.must("}")
	return out
}

// prefix and addr follow an opening quote.

func (r *reader) prefix() netip.Prefix {
	p, err := netip.ParsePrefix(r.text())
	r.bad = r.bad || err != nil
	return p
}

func (r *reader) addr() netip.Addr {
	a, err := netip.ParseAddr(r.text())
	r.bad = r.bad || err != nil
	return a
}
