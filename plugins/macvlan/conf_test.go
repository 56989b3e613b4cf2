package main

import (
	"strings"
	"testing"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, conf, want string // want "" loads
	}{
		{"empty mode", `{"name":"n"}`, ""},
		{"all five modes", `{"name":"n","mode":"vepa"}`, ""},
		{"source without list", `{"name":"n","mode":"source"}`, ""},
		{"source with list", `{"name":"n","mode":"source","sourceMACs":["02:00:00:00:00:01"]}`, ""},
		{"unknown mode", `{"name":"n","mode":"bridged"}`, `mode: "bridged" is none of bridge, private`},
		{"list without source", `{"name":"n","sourceMACs":["02:00:00:00:00:01"]}`, "sourceMACs: has a meaning in mode source only"},
		{"bad source MAC", `{"name":"n","mode":"source","sourceMACs":["02:00:00:00:00:01","x"]}`, `sourceMACs[1]: "x" is not a MAC`},
		{"multicast source MAC", `{"name":"n","mode":"source","sourceMACs":["01:00:5e:00:00:01"]}`, "sourceMACs[0]: 01:00:5e:00:00:01 is a multicast"},
		{"nopromisc elsewhere", `{"name":"n","nopromisc":true}`, "nopromisc: has a meaning in mode passthru only"},
		{"wrong type", `{"name":"n","mtu":"1500"}`, "mtu: a string cannot stand here"},
		{"negative queue", `{"name":"n","bcqueuelen":-1}`, "bcqueuelen: a number -1 cannot stand here"},
		{"no JSON", `{"name":`, "network configuration: unexpected end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := parse([]byte(tt.conf))
			if tt.want == "" {
				if err != nil || c.Mode == "" {
					t.Fatalf("load: mode %q, %v", c.Mode, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"name":"n","mode":"source","sourceMACs":["02:00:00:00:00:01"],"mtu":1400,"ipam":{"type":"underlay"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err == nil && (c.Mode == "" || len(c.sources) != len(c.SourceMACs)) {
			t.Fatalf("loaded without mode or with %d of %d sources", len(c.sources), len(c.SourceMACs))
		}
	})
}
