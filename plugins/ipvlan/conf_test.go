package main

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, conf, want string // want "" is read
		mode, flag       string
	}{
		{"defaults", `{"name":"n"}`, "", "l2", "bridge"},
		{"mode alone", `{"name":"n","mode":"l3s"}`, "", "l3s", "bridge"},
		{"flag alone", `{"name":"n","flag":"vepa"}`, "", "l2", "vepa"},
		{"both", `{"name":"n","mode":"l3","flag":"private"}`, "", "l3", "private"},
		{"unknown mode", `{"name":"n","mode":"L2"}`, `mode: "L2" is none of l2, l3, l3s`, "", ""},
		{"mode of macvlan", `{"name":"n","mode":"bridge"}`, `mode: "bridge" is none of`, "", ""},
		{"unknown flag", `{"name":"n","flag":"passthru"}`, `flag: "passthru" is none of bridge, private, vepa`, "", ""},
		{"macPrefix", `{"name":"n","macPrefix":"02"}`, "macPrefix: an ipvlan link has the MAC of its parent", "", ""},
		{"wrong type", `{"name":"n","mode":2}`, "mode: a number cannot stand here", "", ""},
		{"no JSON", `{"name":`, "network configuration: unexpected end", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := parse([]byte(tt.conf))
			if tt.want == "" {
				if err != nil || c.Mode != tt.mode || c.Flag != tt.flag {
					t.Fatalf("parse: mode %q, flag %q, %v; want %q, %q", c.Mode, c.Flag, err, tt.mode, tt.flag)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestKind(t *testing.T) {
	t.Parallel()
	for mode, layer3 := range map[string]bool{"l2": false, "l3": true, "l3s": true} {
		for flag, access := range map[string]bool{"bridge": true, "private": false, "vepa": false} {
			k := (&config{Mode: mode, Flag: flag}).kind()
			if k.Layer3 != layer3 || (k.NoHostAccess == "") != access {
				t.Errorf("%s, %s: layer 3 %v, no host access %q", mode, flag, k.Layer3, k.NoHostAccess)
			}
			if want := "ipvlan mode " + mode + ", flag " + flag; k.Port != want {
				t.Errorf("port %q, want %q", k.Port, want)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"n","mode":"l3s","flag":"private","vlan":5,"ipam":{"type":"underlay"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err == nil && (c.Mode == "" || c.Flag == "") {
			t.Fatalf("read with mode %q and flag %q", c.Mode, c.Flag)
		}
	})
}
