package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// behindBridge is a chain of the reference bridge, with addresses of its own,
// and hostgw, which adds what leads to the peers of the cluster's network.
func (m *member) behindBridge(name string, hostgw keys) *attachment {
	m.t.Helper()
	own := m.Name[1:]
	conf, err := json.Marshal(keys{"cniVersion": "1.1.0", "name": "mesh", "plugins": []keys{
		{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": json.RawMessage(`{"type": "host-local", "dataDir": "` + m.t.TempDir() + `",
			"ranges": [[{"subnet": "10.9.` + own + `.0/24"}], [{"subnet": "fd09:0:0:` + own + `::/64"}]],
			"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}`)},
		merged(m.mesh(nil), hostgw),
	}})
	if err != nil {
		m.t.Fatal(err)
	}
	a := &attachment{t: m.t, cni: m.CNI(ours, reference), conf: string(conf)}
	a.Namespace, a.rt = container(m.t, m.Host, name)
	a.add()
	return a
}

// mesh is hostgw's part of the chain.
func (m *member) mesh(more keys) keys {
	return merged(keys{"type": "hostgw", "network": "pods", "master": lab.Parent, "dataDir": m.DataDir, "runDir": m.RunDir}, more)
}

// recorded are the containers that the ledger has as users of the network by
// the chain.
func (m *member) recorded() map[string]string {
	m.t.Helper()
	list, err := m.api.Attachments(m.t.Context(), "mesh/hostgw")
	if err != nil {
		m.t.Fatal(err)
	}
	out := map[string]string{}
	for _, a := range list {
		out[a.Attachment.ContainerID] = a.Uses.Network
	}
	return out
}

// TestPeersChained: behind another plugin, with the addresses of that one, an
// attachment is on record as a user of the network until DEL or GC.
func TestPeersChained(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 2)
	h1, h2 := c.hosts[0], c.hosts[1]
	h2.pod("d", nil)
	h1.pod("b", nil)
	a1, a2 := h1.behindBridge("a1", nil), h1.behindBridge("a2", nil)
	h1.routesTo("192.0.2.2", "2001:db8::2")
	wantRecorded := func(when string, who ...*attachment) {
		t.Helper()
		got, want := h1.recorded(), map[string]string{}
		for _, a := range who {
			want[a.ID] = "pods"
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: on record are %v, want %v", when, got, want)
		}
	}
	wantRecorded("after ADD", a1, a2)
	wantOK(t, "CHECK", a1.cni.Check(t.Context(), a1.conf, a1.rt))
	wantOK(t, "STATUS", a1.cni.Status(t.Context(), a1.conf))

	gc := func(valid ...*attachment) {
		t.Helper()
		list := []keys{}
		for _, a := range valid {
			list = append(list, keys{"containerID": a.ID, "ifname": "eth0"})
		}
		conf, err := json.Marshal(h1.mesh(keys{"cniVersion": "1.1.0", "name": "mesh", "cni.dev/valid-attachments": list}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = call{plugin: "hostgw", verb: "GC"}.run(t, h1.Host, string(conf))
		wantOK(t, "GC", err)
	}
	gc(a1, a2)
	wantRecorded("after GC, both are valid", a1, a2)
	gc(a1)
	wantRecorded("after GC, one is valid", a1)
	if err := a2.cni.Check(t.Context(), a2.conf, a2.rt); err == nil {
		t.Error("CHECK misses no record")
	}

	// An ADD that fails undoes what it has made, and DEL finds the record alone.
	n, rt := container(t, h1.Host, "a3")
	conf, err := json.Marshal(h1.mesh(keys{"cniVersion": "1.1.0", "name": "mesh"}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h1.CNI(ours, reference).Add(t.Context(), string(conf), rt); err == nil {
		t.Error("ADD without prevResult")
	}
	wantNoLink(t, n)
	wantRecorded("after a failed ADD", a1)

	// Without the agent DEL works as well.
	h1.end(syscall.SIGKILL)
	a1.del()
	wantOK(t, "DEL", a1.cni.Del(t.Context(), a1.conf, a1.rt))
	for _, r := range readBooks(t, h1.Host).Attachments {
		if r.Attachment.Network == "mesh/hostgw" {
			t.Errorf("after DEL on record: %+v", r)
		}
	}
}

// TestPeersPodLife: an ADD that is repeated gives the same, and DEL needs
// neither agent, namespace nor parent.
func TestPeersPodLife(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 1)
	h1 := c.hosts[0]
	for _, more := range []keys{nil, {"bridge": "ul0"}} {
		before := hostLinks(t, h1.Host)
		a, b := h1.pod("a", more), h1.pod("b", more)
		first := fmt.Sprint(a.addrs, a.mac)
		a.add()
		if again := fmt.Sprint(a.addrs, a.mac); first != again {
			t.Errorf("ADD gave %s, and then %s", first, again)
		}
		meet(t, a.station, b.station)
		h1.end(syscall.SIGKILL)
		a.add() // from the block that the host has leased
		if again := fmt.Sprint(a.addrs, a.mac); first != again {
			t.Errorf("ADD gave %s, and without agent %s", first, again)
		}
		wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
		a.rt.NetNS = ""
		mustDo(t, h1.Namespace, "ip", "netns", "delete", b.ID)
		for range 2 {
			wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
			wantOK(t, "DEL", b.cni.Del(t.Context(), b.conf, b.rt))
		}
		wantNothing(t, h1.Host, before, a.Namespace)
		mustDo(t, h1.Namespace, "ip", "netns", "delete", a.ID)
		c.start()
	}
}

// TestPeersChainedFails: an ADD that fails behind the record leaves none.
func TestPeersChainedFails(t *testing.T) {
	t.Parallel()
	h1 := newPeers(t, 1).hosts[0]
	a := h1.behindBridge("a", nil)
	a.del()
	conf := strings.Replace(a.conf, `"master":"`+lab.Parent+`"`, `"master":"nosuch0"`, 1)
	if _, err := a.cni.Add(t.Context(), conf, a.rt); err == nil || !strings.Contains(err.Error(), "nosuch0") {
		t.Fatalf("ADD: %v, want it to be about nosuch0", err)
	}
	if got := h1.recorded(); len(got) != 0 {
		t.Errorf("on record after an ADD that failed: %v", got)
	}
}
