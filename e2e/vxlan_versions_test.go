package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestSegmentVersions: in every version of the specification that tells
// interfaces a container comes into its segment and leaves it, also where DEL is
// told no prevResult (before 0.4.0), and whoever gives the addresses.
func TestSegmentVersions(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	before := hostLinks(t, h)
	foreign := func() json.RawMessage {
		return json.RawMessage(`{"type": "host-local", "dataDir": "` + t.TempDir() + `", "ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd08::/64"}]]}`)
	}
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for _, ipam := range []json.RawMessage{tenantRanges, foreign()} {
			conf := strings.Replace(tenant(t, "red", 5001, keys{"ipam": ipam}), `"cniVersion":"1.1.0"`, `"cniVersion":"`+version+`"`, 1)
			name := strings.ReplaceAll(version, ".", "")
			if strings.Contains(string(ipam), "host-local") {
				name += "f"
			}
			var both []*attachment
			for _, letter := range []string{"a", "b"} {
				a := &attachment{t: t, cni: h.CNI(ours, reference), conf: conf}
				a.Namespace, a.rt = container(t, h, letter+name)
				a.add()
				both = append(both, a)
			}
			meet(t, both[0].station, both[1].station)
			for _, r := range readBooks(t, h).Attachments {
				if r.Uses.Segment.VNI != 5001 {
					t.Errorf("%s: on record as %+v", name, r.Uses)
				}
			}
			for _, a := range both {
				if version >= "0.4.0" {
					wantOK(t, "CHECK "+a.ID, a.cni.Check(t.Context(), a.conf, a.rt))
				}
				a.del()
			}
			wantNothing(t, h, before)
		}
	}
}

// TestVxlanInput: what cannot be read is refused with its code and its place.
func TestVxlanInput(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	_, rt := container(t, h, "c1")
	for _, test := range []struct {
		name, verb string
		more       keys
		code       uint
		text       string
	}{
		{"mode is missing", "ADD", keys{"mode": ""}, codeConfig, "mode: is missing"},
		{"vni is text", "ADD", keys{"vni": "5001"}, codeDecode, "vni"},
		{"prevResult is a number", "ADD", keys{"prevResult": 1}, codeDecode, "prevResult"},
		{"CHECK without prevResult", "CHECK", nil, codeConfig, "prevResult"},
		{"CHECK of nothing", "CHECK", keys{"prevResult": keys{"cniVersion": "1.1.0"}}, codeCheck, "segment 5001"},
		{"GC without valid attachments", "GC", nil, codeConfig, "cni.dev/valid-attachments"},
		{"STATUS of what is invalid", "STATUS", keys{"vni": 1 << 24}, codeConfig, "vni: 16777216"},
		{"routed, no netns", "ADD", keys{"mode": "routed", "master": nil, "vni": 0, "prevResult": keys{"cniVersion": "1.1.0",
			"interfaces": []keys{{"name": "eth0", "sandbox": "/nowhere"}}}}, codeLink, "prevResult"},
	} {
		conf, err := json.Marshal(merged(segment(5001, keys{"cniVersion": "1.1.0", "name": "red", "dataDir": h.DataDir, "runDir": h.RunDir}), test.more))
		if err != nil {
			t.Fatal(err)
		}
		_, err = call{verb: test.verb, plugin: "vxlan", rt: rt}.run(t, h, string(conf))
		t.Run(test.name, func(t *testing.T) { wantError(t, err, test.code, test.text) })
	}
	if n := len(readBooks(t, h).Attachments); n > 0 {
		t.Errorf("%d on record", n)
	}
}
