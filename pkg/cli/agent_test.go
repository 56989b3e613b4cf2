package cli_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/admin"
)

// opened is the ledger that an agent has open.
type opened struct{ l *ledger.Ledger }

func (o opened) With(f func(*ledger.Ledger) error) error { return f(o.l) }

// What an operator does goes through the agent that has the ledger open, and says
// the same.
func TestOperatorThroughTheAgent(t *testing.T) {
	t.Parallel()
	top, err := os.MkdirTemp("", "ul") // the path of a socket has 108 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	dir := filepath.Join(top, "ledger")
	if err := fill(dir); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: dir, RunDir: dir + ".run"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server, err := admin.New(admin.Config{Node: "n1", Version: "v0", Socket: filepath.Join(dir+".run", admin.SocketName), DataDir: dir,
		Ledger: opened{l}, Pending: func() []string { return nil }, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-server.Ready()

	old := filepath.Join(top, "lan")
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "192.0.2.19"), []byte("gone\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(top, "saved", "ledger.db")
	if err := os.Mkdir(filepath.Dir(saved), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		line   []string
		status int
		want   string
	}{
		{[]string{"address", "history", "192.0.2.11"}, 0, "90be11aa90be"},
		{[]string{"address", "reserve", "192.0.2.10", "--pool=lan"}, 1, "address: 192.0.2.10 is held by lan/4f1c"},
		{[]string{"address", "reserve", "192.0.2.18", "--pool=lan", "--reason=a printer & more"}, 0, "reserved 192.0.2.18 of pool lan"},
		{[]string{"address", "unreserve", "192.0.2.18"}, 0, "freed 192.0.2.18, which was reserved: a printer & more"},
		{[]string{"conflict", "list"}, 0, "192.0.2.12/24"},
		{[]string{"conflict", "clear", "192.0.2.12"}, 0, "freed 192.0.2.12, which was quarantined"},
		{[]string{"conflict", "clear", "192.0.2.12"}, 1, "address: 192.0.2.12 is not quarantined: it is free"},
		{[]string{"ledger", "migrate", "host-local", old}, 0, "0 addresses of network lan as held and 1 as reserved"},
		{[]string{"address", "show", "192.0.2.19"}, 0, "host-local gave it to container gone"},
		{[]string{"ledger", "backup", saved}, 0, ""},
		{[]string{"ledger", "export"}, 0, `"blocks": []`},
	} {
		status, out, complaints := run(t, append(tt.line, "--data-dir="+dir, "--run-dir="+dir+".run")...)
		if status != tt.status || !strings.Contains(out+complaints, tt.want) {
			t.Errorf("%q: status %d, want %d with %q:\n%s%s", tt.line, status, tt.status, tt.want, out, complaints)
		}
	}
	status, out, complaints := run(t, "address", "show", "192.0.2.19", "--data-dir="+filepath.Dir(saved), "--run-dir="+top+"/none")
	if status != 0 || !strings.Contains(out, "reserved") {
		t.Errorf("in the backup: status %d\n%s%s", status, out, complaints)
	}
}
