package e2e_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestOverlay: containers on hosts of two segments reach each other, with VXLAN
// between the segments alone, and with the room that it takes.
func TestOverlay(t *testing.T) {
	t.Parallel()
	c := newOverlay(t, 4, 2, overlayNetwork)
	var pods []*attachment
	for _, h := range c.hosts {
		pods = append(pods, h.overlaid("a", nil))
	}
	const direct, vxlan = "direct", "vxlan"
	for i, want := range []map[string]string{
		{"h2": direct, "h3": vxlan, "h4": vxlan}, {"h1": direct, "h3": vxlan, "h4": vxlan},
		{"h1": vxlan, "h2": vxlan, "h4": direct}, {"h1": vxlan, "h2": vxlan, "h3": direct},
	} {
		c.hosts[i].awaitWays(want)
	}
	for i, a := range pods {
		if link := mustLink(t, a.Namespace, "eth0"); link.MTU != 1450 {
			t.Errorf("MTU of a container on h%d: %d", i+1, link.MTU)
		}
		for j, b := range pods[:i] {
			near := i/2 == j/2
			if frames := c.hosts[i].carried(a.station, b.station); (frames == 0) != near {
				t.Errorf("h%d and h%d: %d frames with VXLAN", i+1, j+1, frames)
			}
		}
		for _, h := range c.hosts {
			meet(t, a.station, hostStation(t, h.Host))
		}
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
		wantOK(t, "STATUS", a.cni.Status(t.Context(), a.conf))
	}
	// What is larger than VXLAN leaves room for is told, not lost.
	full := "-M do -s " + fmt.Sprint(1450-28)
	mustDo(t, pods[0].Namespace, strings.Fields("ping -n -c 1 -w 10 "+full+" "+pods[2].addrs[0].String())...)
	list := ctl(t, c.hosts[0].Host, "peer", "list")
	for _, want := range []string{"198.51.100.3", "vx7", "is on no subnet that this node is on"} {
		if !strings.Contains(list, want) {
			t.Errorf("underlayctl peer list has no %s:\n%s", want, list)
		}
	}
	way := ctl(t, c.hosts[0].Host, "trace", pods[0].addrs[0].String(), pods[2].addrs[0].String())
	for _, want := range []string{"dev vx7, VXLAN", "peer h3, VTEP 198.51.100.3, network pods"} {
		if !strings.Contains(way, want) {
			t.Errorf("underlayctl trace has no %q:\n%s", want, way)
		}
	}
	for _, a := range pods {
		a.del()
	}
}

// TestOverlayMove: a host goes from one segment to the other and back, and what is
// connected stays so.
func TestOverlayMove(t *testing.T) {
	t.Parallel()
	c := newOverlay(t, 3, 1, overlayNetwork)
	h1, h2, h3 := c.hosts[0], c.hosts[1], c.hosts[2]
	a, b, d := h1.overlaid("a", nil), h2.overlaid("b", nil), h3.overlaid("d", nil)
	h2.awaitWays(map[string]string{"h1": "direct", "h3": "vxlan"})
	talk := []func(string){conversation(t, a.station, b.station), conversation(t, d.station, b.station)}
	say := func(what string) {
		t.Helper()
		for _, f := range talk {
			f(what)
		}
	}
	say("at first")
	h2.move(true)
	h1.awaitWays(map[string]string{"h2": "vxlan", "h3": "vxlan"})
	h3.awaitWays(map[string]string{"h1": "vxlan", "h2": "direct"})
	say("after the move")
	if h3.carried(d.station, b.station) > 0 || h1.carried(a.station, b.station) == 0 {
		t.Error("not all go the new way")
	}
	h2.move(false)
	h1.awaitWays(map[string]string{"h2": "direct", "h3": "vxlan"})
	h3.awaitWays(map[string]string{"h1": "vxlan", "h2": "vxlan"})
	say("back again")
	if h3.carried(d.station, b.station) == 0 || h1.carried(a.station, b.station) > 0 {
		t.Error("not all go the old way again")
	}
}

// conversation opens a TCP connection between two containers; each call of say
// sends a line over it, and waits for the echo.
func conversation(t *testing.T, from, to station) (say func(string)) {
	t.Helper()
	var server net.Listener
	var client net.Conn
	err := to.Do(func() (err error) {
		server, err = net.Listen("tcp", net.JoinHostPort(to.addrs[0].String(), "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		c, err := server.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if _, err := c.Write([]byte(line)); err != nil {
				return
			}
		}
	}()
	err = from.Do(func() (err error) {
		client, err = net.DialTimeout("tcp", server.Addr().String(), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	r := bufio.NewReader(client)
	return func(line string) {
		t.Helper()
		began := time.Now()
		client.SetDeadline(began.Add(30 * time.Second))
		if _, err := client.Write([]byte(line + "\n")); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != line+"\n" {
			t.Fatalf("%s: %q, %v", line, got, err)
		}
		t.Logf("%s: the echo came after %s", line, time.Since(began).Round(time.Millisecond))
	}
}

// TestOverlayRepair: agents die, devices and entries are deleted, a node is
// removed: all is as it has to be soon, and nothing stale stays.
func TestOverlayRepair(t *testing.T) {
	t.Parallel()
	c := newOverlay(t, 3, 1, overlayNetwork)
	h1, h2, h3 := c.hosts[0], c.hosts[1], c.hosts[2]
	a, b, d := h1.overlaid("a", nil), h2.overlaid("b", nil), h3.overlaid("d", nil)
	h1.awaitWays(map[string]string{"h2": "direct", "h3": "vxlan"})
	meet(t, a.station, b.station)
	meet(t, a.station, d.station)

	lost := make(chan string, 1)
	go func() {
		out, _ := a.Exec(t.Context(), "ping", "-n", "-q", "-i", "0.02", "-c", "250", "-W", "2", d.addrs[0].String())
		lost <- out
	}()
	time.Sleep(500 * time.Millisecond)
	h1.end(syscall.SIGKILL)
	h3.end(syscall.SIGTERM)
	c.start()
	if out := <-lost; !strings.Contains(out, "250 received") {
		t.Errorf("two agents were ended and started again:\n%s", out)
	}
	for _, damage := range []string{
		"ip link del vx7", "ip neigh flush dev vx7 nud permanent", "bridge fdb flush dev vx7", "ip link set vx7 mtu 1280", "ip route flush proto 141",
	} {
		mustDo(t, h1.Namespace, strings.Fields(damage)...)
		began := time.Now()
		meet(t, a.station, d.station)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: mended after %s", damage, took)
		}
	}
	// The agent is away when the device goes.
	h1.end(syscall.SIGKILL)
	mustDo(t, h1.Namespace, "ip", "link", "del", "vx7")
	c.start()
	meet(t, a.station, d.station)

	// One is removed for good: nothing of it stays.
	entries := func() string {
		return mustDo(t, h1.Namespace, "bridge", "fdb", "show", "dev", "vx7") + mustDo(t, h1.Namespace, "ip", "neigh", "show", "dev", "vx7") +
			mustDo(t, h1.Namespace, "ip", "route", "show", "dev", "vx7")
	}
	if got := entries(); !strings.Contains(got, "198.51.100.3") {
		t.Fatalf("nothing leads to h3:\n%s", got)
	}
	h3.end(syscall.SIGKILL)
	eventually(t, "h3 is heard of no more", func() bool {
		return strings.Contains(ctl(t, h1.Host, "node", "show", "h3"), "silent")
	})
	ctl(t, h1.Host, "node", "remove", "h3", "--rest", "0s", "--yes-it-is-off")
	eventually(t, "nothing of h3 is left", func() bool {
		got := entries()
		return !strings.Contains(got, "198.51.100.3") && !strings.Contains(got, d.addrs[0].String())
	})
	ctl(t, h1.Host, "network", "delete", "pods")
	eventually(t, "the device is gone", func() bool {
		_, there, err := h1.Link(t.Context(), "vx7")
		return err == nil && !there
	})
}
