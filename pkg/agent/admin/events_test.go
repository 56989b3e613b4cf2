package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/underlay-cni/underlay/pkg/agent/api"
)

func TestEvents(t *testing.T) {
	t.Parallel()
	c, _, server := serve(t)
	ctx := t.Context()
	if e, err := c.Events(ctx, api.EventFilter{}); err != nil || e == nil || len(e) > 0 {
		t.Errorf("before anything: %v, %v", e, err)
	}
	for i := range 3 {
		server.conf.Events.Add(api.Event{Kind: api.AddressConflict, Text: fmt.Sprint("conflict ", i)})
		server.conf.Events.Add(api.Event{Kind: api.BlockLeased, Text: fmt.Sprint("block ", i)})
	}
	all, err := c.Events(ctx, api.EventFilter{})
	if err != nil || len(all) != 6 || all[0].Text != "conflict 0" || all[5].Text != "block 2" {
		t.Fatalf("%v, %v", all, err)
	}
	if e, err := c.Events(ctx, api.EventFilter{Since: all[1].Seq, Kind: api.BlockLeased}); err != nil || len(e) != 2 || e[0].Text != "block 1" {
		t.Errorf("since, of a kind: %v, %v", e, err)
	}
	for query, want := range map[string]string{"since=x": `\"x\" is no number`, "follow=perhaps": `\"perhaps\" is neither`, "kind=storm": `\"storm\" is none of`} {
		w := httptest.NewRecorder()
		server.handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events?"+query, nil))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if err := c.FollowEvents(ctx, api.EventFilter{Kind: "storm"}, nil); err == nil || !strings.Contains(err.Error(), "none of") {
		t.Errorf("follow what is not there: %v", err)
	}
}

// TestFollow: who follows has what was, and what comes, and is let go when the
// agent ends.
func TestFollow(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "ul") // the path of a socket has 108 octets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	server, err := New(Config{Socket: filepath.Join(dir, SocketName), Ledger: &shelf{away: errors.New("away")},
		Pending: func() []string { return nil }, Log: slogNowhere(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- server.Run(running) }()
	<-server.Ready()
	c := api.NewClient(dir)
	defer c.Close()
	server.conf.Events.Add(api.Event{Kind: api.AddressConflict, Text: "before"})
	got := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- c.FollowEvents(t.Context(), api.EventFilter{Kind: api.AddressConflict}, func(e api.Event) error {
			got <- e.Text
			return nil
		})
	}()
	if text := <-got; text != "before" {
		t.Errorf("first %q", text)
	}
	server.conf.Events.Add(api.Event{Kind: api.BlockLeased, Text: "another kind"})
	server.conf.Events.Add(api.Event{Kind: api.AddressConflict, Text: "after"})
	if text := <-got; text != "after" {
		t.Errorf("then %q", text)
	}
	enough := errors.New("enough")
	if err := c.FollowEvents(t.Context(), api.EventFilter{}, func(api.Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("who has enough is told %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.FollowEvents(gone, api.EventFilter{}, func(api.Event) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("who has gone is told %v", err)
	}
	began := time.Now()
	stop()
	if err := errors.Join(<-ended, <-stopped); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("the server took %v to end", took)
	}
}
