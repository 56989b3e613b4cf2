package nlsock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// message is one netlink message, without the padding after it.
func message(kind, flags uint16, seq uint32, body []byte) []byte {
	o := binary.NativeEndian
	b := o.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = o.AppendUint16(b, kind)
	b = o.AppendUint16(b, flags)
	b = o.AppendUint32(b, seq)
	b = o.AppendUint32(b, 0)
	return append(b, body...)
}

func errno(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }

// reply is a message of a script; the request's number is added to seq.
type reply struct {
	kind, flags uint16
	seq         int
	body        []byte
}

// A turn is what answers one request: datagrams of messages.
type turn [][]reply

var (
	done  = reply{kind: unix.NLMSG_DONE, flags: unix.NLM_F_MULTI, body: errno(0)}
	acked = reply{kind: unix.NLMSG_ERROR, body: append(errno(0), make([]byte, unix.NLMSG_HDRLEN)...)}
)

func item(s string) reply { return reply{kind: unix.RTM_NEWLINK, body: []byte(s)} }

func interrupted(r reply) reply {
	r.flags |= unix.NLM_F_DUMP_INTR
	return r
}

func older(r reply) reply {
	r.seq = -1
	return r
}

// played is a conn to a kernel that plays the script, one turn a request.
func played(t *testing.T, script ...turn) (c *Conn, requests func() int) {
	t.Helper()
	c, kernel := pair(t)
	over := make(chan error, 1)
	asked := 0
	go func() {
		buf := make([]byte, 4096)
		for _, answers := range script {
			n, err := unix.Read(kernel, buf)
			if n <= 0 {
				over <- err // hung up before the script's end
				return
			}
			asked++
			for _, datagram := range answers {
				var b []byte
				for _, r := range datagram {
					b = append(b, make([]byte, Align(len(b))-len(b))...)
					b = append(b, message(r.kind, r.flags, header(buf).Seq+uint32(r.seq), r.body)...)
				}
				if _, err := unix.Write(kernel, b); err != nil {
					over <- err
					return
				}
			}
		}
		over <- nil
	}()
	return c, func() int {
		must(t, unix.Shutdown(c.fd, unix.SHUT_WR)) // so that a script that is not over ends
		must(t, <-over)
		return asked
	}
}

// pair is a conn to nobody yet. The sockets keep messages apart and ignore the
// address of the other end, as a netlink socket's end does.
func pair(t *testing.T) (c *Conn, kernel int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	c = &Conn{fd: fds[0], buf: make([]byte, 256)}
	t.Cleanup(func() {
		c.Close()
		must(t, unix.Close(fds[1]))
	})
	return c, fds[1]
}

func TestExchange(t *testing.T) {
	t.Parallel()
	get := func(c *Conn) (string, error) {
		b, err := c.Get(linkRequest(unix.RTM_GETLINK, 1))
		return string(b), err
	}
	dump := func(c *Conn) (string, error) {
		list, err := c.Dump(linkRequest(unix.RTM_GETLINK, 0))
		return string(bytes.Join(list, []byte(" "))), err
	}
	execute := func(c *Conn) (string, error) { return "", c.Execute(linkRequest(unix.RTM_DELLINK, 1)) }
	refused := reply{kind: unix.NLMSG_ERROR, body: append(errno(unix.ENODEV), make([]byte, unix.NLMSG_HDRLEN)...)}
	broken := reply{kind: unix.NLMSG_DONE, flags: unix.NLM_F_MULTI, body: errno(unix.ENODEV)}
	always := make([]turn, 20)
	for i := range always {
		always[i] = turn{{interrupted(item("one")), done}}
	}
	tests := []struct {
		name     string
		call     func(*Conn) (string, error)
		script   []turn
		want     string
		err      string
		requests int
	}{
		{name: "acknowledged", call: execute, script: []turn{{{acked}}}},
		{name: "refused", call: execute, script: []turn{{{refused}}}, err: "no such device"},
		{name: "one", call: get, script: []turn{{{item("one")}, {acked}}}, want: "one"},
		{name: "list in several messages", call: dump, script: []turn{{{item("one"), item("two")}, {item("three")}, {done}}}, want: "one two three"},
		{name: "empty list", call: dump, script: []turn{{{done}}}},
		{name: "list that the kernel gives up", call: dump, script: []turn{{{item("one")}, {broken}}}, want: "one", err: "no such device"},
		{
			name: "answers to what was given up", call: get, want: "new",
			script: []turn{{{older(item("old")), older(refused)}, {older(done), item("new"), older(item("old"))}, {older(acked)}, {acked}}},
		},
		{
			name: "interrupted", call: dump, want: "one three", requests: 2,
			script: []turn{{{item("one"), interrupted(item("two"))}, {done}}, {{item("one"), item("three"), done}}},
		},
		{
			name: "interrupted at the end", call: dump, want: "two", requests: 2,
			script: []turn{{{item("one")}, {interrupted(done)}}, {{item("two"), done}}},
		},
		{
			name: "interrupted list of old", call: dump, want: "one",
			script: []turn{{{older(interrupted(item("old"))), item("one"), done}}},
		},
		{
			name: "interrupted for ever", call: dump, script: always, want: "one", requests: 16,
			err: "the kernel's list kept changing while it was read",
		},
		{name: "errno is cut off", call: execute, script: []turn{{{{kind: unix.NLMSG_ERROR, body: []byte{0, 0}}}}}, err: ErrCutOff.Error()},
		{name: "end without errno", call: dump, script: []turn{{{item("one"), {kind: unix.NLMSG_DONE}}}}, want: "one"},
		{
			name: "too long", call: get, script: []turn{{{item(strings.Repeat("x", 256))}}},
			err: "netlink answer of 272 bytes: message too long",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, requests := played(t, tt.script...)
			got, err := tt.call(c)
			wantError(t, err, tt.err)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if got, want := requests(), max(tt.requests, 1); got != want {
				t.Errorf("asked %d times, want %d", got, want)
			}
		})
	}
}

// No kernel sends such datagrams. They must end the exchange, not hang it.
func TestExchangeOddDatagrams(t *testing.T) {
	t.Parallel()
	whole := message(unix.NLMSG_ERROR, 0, 1, append(errno(0), make([]byte, unix.NLMSG_HDRLEN)...))
	short := bytes.Clone(whole)
	binary.NativeEndian.PutUint32(short, unix.NLMSG_HDRLEN-1)
	tests := []struct {
		name     string
		datagram []byte
	}{
		{"empty", nil}, // also what a closed socket reads
		{"no header", whole[:unix.NLMSG_HDRLEN-1]},
		{"less than it says", whole[:len(whole)-1]},
		{"says less than a header", short},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, kernel := pair(t)
			if tt.datagram == nil {
				must(t, unix.Shutdown(kernel, unix.SHUT_WR))
			} else {
				_, err := unix.Write(kernel, tt.datagram)
				must(t, err)
			}
			req := linkRequest(unix.RTM_GETLINK, 1)
			req.Seq = 1
			wantError(t, c.Execute(req), ErrCutOff.Error())
		})
	}
}

// A signal interrupts a system call where the handler does not restart it. The
// runtime's handlers do, except for a socket that has a timeout.
func TestExchangeGoesOnAfterSignal(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	defer signal.Stop(signals)
	c, kernel := pair(t)
	must(t, unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3600}))

	req := linkRequest(unix.RTM_DELLINK, 1)
	thread, ended := make(chan int, 1), make(chan error, 2)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		_, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		ended <- err
		ended <- c.Execute(req)
	}()
	tid := <-thread
	interrupt := func() {
		must(t, unix.Tgkill(unix.Getpid(), tid, unix.SIGUSR1))
		<-signals
	}
	// A bare read ends with the first signal that finds it waiting.
	for len(ended) == 0 {
		interrupt()
	}
	if err := <-ended; !errors.Is(err, unix.EINTR) {
		t.Fatalf("a bare read ends with: %v", err)
	}
	// The request is there, so what comes now is the wait for the answer. Most of
	// these find it waiting.
	_, err := unix.Read(kernel, make([]byte, 4096))
	must(t, err)
	for range 100 {
		interrupt()
	}
	_, err = unix.Write(kernel, message(unix.NLMSG_ERROR, 0, req.Seq, acked.body))
	must(t, err)
	must(t, <-ended)
}

// The same with the real kernel: a request whose answer nobody has read.
func TestStaleAnswer(t *testing.T) {
	t.Parallel()
	c, err := Dial(-1)
	must(t, err)
	defer c.Close()
	for _, req := range []*nl.NetlinkRequest{linkRequest(unix.RTM_GETLINK, 1), linkRequest(unix.RTM_GETLINK, 1<<20)} {
		req.Flags |= unix.NLM_F_ACK
		must(t, unix.Sendto(c.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	}
	name, err := NewNames(c).Name(1)
	must(t, err)
	if name != "lo" {
		t.Errorf("asked for lo, got %q", name)
	}
}
