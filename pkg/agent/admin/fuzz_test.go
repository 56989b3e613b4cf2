package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam/registry"
)

// FuzzDocuments: a document is taken or refused, and one that was taken is
// taken back as it is read.
func FuzzDocuments(f *testing.F) {
	f.Add([]byte(podsDocument))
	f.Add([]byte(`{"version":1,"name":"six","kind":"routed","ranges":[[{"subnet":"2001:db8::/64"}]],"blockPrefix":{"ipv6":122}}`))
	f.Add([]byte(`{"version":1,"name":"n","tenant":"red","pool":"pods","backend":"vxlan","vni":1}`))
	f.Add([]byte(`{"version":1,"name":"red","quota":5}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, reg, _ := cluster(t)
		s := &Server{conf: Config{Cluster: always(reg), Log: slogNowhere()}}
		var named struct{ Name string }
		_ = json.Unmarshal(text, &named)
		for _, kind := range []struct {
			name  string
			make  func(registry.Registry, *http.Request) (any, error)
			again func(registry.Registry, *http.Request) (any, error)
		}{{"pool", s.createPool, s.updatePool}, {"network", s.putNetwork, s.putNetwork}, {"tenant", s.putTenant, nil}} {
			code, answer := put(s, kind.make, named.Name, text)
			switch code {
			case http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge:
				continue
			case http.StatusOK:
			default:
				t.Fatalf("%s: status %d: %s", kind.name, code, answer)
			}
			if kind.again == nil {
				continue
			}
			if code, again := put(s, kind.again, named.Name, answer); code != http.StatusOK || string(again) != string(answer) {
				t.Fatalf("%s %s\nis taken back with status %d as %s", kind.name, answer, code, again)
			}
		}
	})
}

func put(s *Server, f func(registry.Registry, *http.Request) (any, error), name string, text []byte) (int, []byte) {
	r := httptest.NewRequest("PUT", "/", strings.NewReader(string(text)))
	r.SetPathValue("name", name)
	w := httptest.NewRecorder()
	s.inRegistry(f)(w, r)
	return w.Code, w.Body.Bytes()
}
