package e2e_test

import (
	"encoding/json"
	"maps"
	"testing"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// pods is a configuration of hostgw for a host, with a block of 10.5.0.0/16 and
// of fd05::/48 of its own, and the other host's as that of a peer.
func pods(t *testing.T, h *lab.Host, more keys) string {
	t.Helper()
	own, other := h.Name[1:], "2"
	if own == "2" {
		other = "1"
	}
	conf := keys{
		"cniVersion": "1.1.0", "name": "pods", "type": "hostgw", "master": lab.Parent,
		"peers": []keys{
			{"prefix": "10.5." + other + ".0/24", "via": "192.0.2." + other},
			{"prefix": "fd05:0:0:" + other + "::/64", "via": "2001:db8::" + other},
		},
		"ipam": json.RawMessage(`{"type": "underlay", "ranges": [[{"subnet": "10.5.` + own + `.0/24"}], [{"subnet": "fd05:0:0:` + own + `::/64"}]]}`),
	}
	maps.Copy(conf, more)
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
