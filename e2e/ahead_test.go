package e2e_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// onHost starts an agent where the host's parents are, and waits until it
// answers.
func onHost(t *testing.T, h *lab.Host) *api.Client {
	t.Helper()
	text, err := json.Marshal(keys{"nodeName": h.Name, "dataDir": h.DataDir, "runDir": h.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "underlayd.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(ours, "underlayd"), "--config", file)
	cmd.Stderr = &log
	if err := h.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	c := api.NewClient(h.RunDir)
	t.Cleanup(func() {
		c.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("the agent ended with %v\n%s", err, &log)
		}
	})
	eventually(t, "the agent is ready", func() bool {
		r, err := c.Ready(t.Context())
		return err == nil && r.Ready
	})
	return c
}

// With an agent an address that somebody on the wire has is in quarantine before
// any ADD comes to it.
func TestAhead(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := onHost(t, b.h1)
	foreign := holds("192.0.2.11/24", "192.0.2.14/24", "2001:db8::12/64")(t, b)
	conf := lan(t, b.h1, nil)
	c1 := attach(t, b.h1, "c1", conf)
	if diff := cmp.Diff([]string{"192.0.2.10", "2001:db8::10"}, texts(c1.addrs)); diff != "" {
		t.Fatalf("addresses of c1 (-want +got):\n%s", diff)
	}
	conflicts := func() []api.Event {
		all, err := c.Events(t.Context(), api.EventFilter{Kind: api.AddressConflict})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	eventually(t, "what others have is found", func() bool { return len(conflicts()) == 3 })
	wantQuarantined(t, b.h1, foreign, []string{"192.0.2.11", "192.0.2.14", "2001:db8::12"})

	// Nobody tries them any more: these are the next, at the first attempt.
	want := [][]string{{"192.0.2.12", "2001:db8::11"}, {"192.0.2.13", "2001:db8::13"}, {"192.0.2.15", "2001:db8::14"}}
	for i, name := range []string{"c2", "c3", "c4"} {
		a := attach(t, b.h1, name, conf)
		if diff := cmp.Diff(want[i], texts(a.addrs)); diff != "" {
			t.Errorf("addresses of %s (-want +got):\n%s", name, diff)
		}
	}
	found := conflicts()
	if len(found) != 3 {
		t.Errorf("an ADD met with a conflict: %+v", found)
	}
	for _, e := range found {
		if e.Container != "" || e.Pool != "lan" || !strings.Contains(e.Text, foreign) {
			t.Errorf("event %+v", e)
		}
	}
}
