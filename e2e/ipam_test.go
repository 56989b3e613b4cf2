package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/underlay-cni/underlay/e2e/binaries"
	"github.com/underlay-cni/underlay/e2e/lab"
)

// Our macvlan with the reference's IPAM plugins.
func TestForeignIPAM(t *testing.T) {
	t.Parallel()
	static := t.TempDir()
	if err := binaries.Reference(t.Context(), static, "./plugins/ipam/static"); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		// ipam of the nth container, whose addresses end in 10+n.
		ipam  func(n int) keys
		files int // that the plugin keeps for the IPv4 addresses of two attachments
	}{
		{name: "host-local", files: 2, ipam: func(int) keys {
			return keys{"type": "host-local", "ranges": json.RawMessage(`[
				[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.19"}],
				[{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10", "rangeEnd": "2001:db8::19"}]]`)}
		}},
		{name: "static", ipam: func(n int) keys {
			return keys{"type": "static", "addresses": []keys{
				{"address": fmt.Sprintf("192.0.2.1%d/24", n)}, {"address": fmt.Sprintf("2001:db8::1%d/64", n)}}}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			var as []*attachment
			for i, name := range []string{"c0", "c1"} {
				a := &attachment{t: t, cni: b.h1.CNI(ours, reference, static), conf: lan(t, b.h1, keys{"ipam": test.ipam(i)})}
				a.Namespace, a.rt = container(t, b.h1, name)
				a.add()
				as = append(as, a)
				wantOK(t, "CHECK", a.cni.Check(t.Context(), a.conf, a.rt))
			}
			meet(t, as[0].station, as[1].station)
			meet(t, as[0].station, hostStation(t, b.h2))

			// Such plugins refuse an attachment that they know. A container that
			// runs must not lose its link and its address by that.
			_, err := as[0].cni.Add(t.Context(), as[0].conf, as[0].rt)
			wantError(t, err, codeLink, "eth0")
			wantOK(t, "CHECK after a second ADD", as[0].cni.Check(t.Context(), as[0].conf, as[0].rt))
			reaches(t, as[1].station, as[0].station)
			wantFiles(t, b.h1, test.files)

			mustDo(t, as[0].Namespace, "ip", "addr", "flush", "dev", "eth0")
			wantError(t, as[0].cni.Check(t.Context(), as[0].conf, as[0].rt), codeCheck, "192.0.2.10/24")

			wantFiles(t, b.h1, test.files)
			for range 2 {
				for _, a := range as {
					wantOK(t, "DEL", a.cni.Del(t.Context(), a.conf, a.rt))
					wantNoLink(t, a.Namespace)
				}
			}
			wantFiles(t, b.h1, 0)
			// The ledger is none of a foreign plugin's business.
			if _, err := os.Stat(filepath.Join(b.h1.DataDir, "ledger.db")); !os.IsNotExist(err) {
				t.Errorf("there is a ledger: %v", err)
			}
		})
	}
}

// wantFiles counts what host-local keeps of IPv4 addresses.
func wantFiles(t *testing.T, h *lab.Host, want int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.DataDir, "lan", "*.*.*.*"))
	if err != nil || len(files) != want {
		t.Errorf("host-local holds %v, error %v; want %d", files, err, want)
	}
}

// spy is a folder with an IPAM plugin of type spy that writes down how it is
// called, and then does what the shell script says.
func spy(t *testing.T, script string) (folder string, calls func() []string) {
	t.Helper()
	folder = t.TempDir()
	log := filepath.Join(folder, "log")
	text := "#!/bin/sh\ncat >/dev/null\necho \"$CNI_COMMAND $CNI_CONTAINERID\" >>" + log + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(folder, "spy"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return folder, func() []string {
		b, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(b)) {
			lines = append(lines, strings.TrimSpace(line))
		}
		return lines
	}
}

// All verbs reach a foreign IPAM plugin, and its word counts.
func TestForeignIPAMVerbs(t *testing.T) {
	t.Parallel()
	h := oneHost(t)
	folder, calls := spy(t, `
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.77/24"}], "dns": {"nameservers": ["192.0.2.53"]}}' ;;
STATUS) echo '{"cniVersion": "1.1.0", "code": 51, "msg": "spare"}'; exit 1 ;;
esac`)
	cni, conf := h.CNI(ours, folder), lan(t, h, keys{"ipam": keys{"type": "spy"}})
	n, rt := container(t, h, "c1")

	result, err := cni.Add(t.Context(), conf, rt)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.DNS.Nameservers) != 1 || len(result.IPs) != 1 || result.IPs[0].Address.IP.String() != "192.0.2.77" {
		t.Errorf("result is %+v", result)
	}
	wantOK(t, "CHECK", cni.Check(t.Context(), conf, rt))
	wantOK(t, "GC", cni.GC(t.Context(), conf, types.GCAttachment{ContainerID: rt.ContainerID, IfName: rt.IfName}))
	wantError(t, cni.Status(t.Context(), conf), 51, "spare")
	wantOK(t, "DEL", cni.Del(t.Context(), conf, rt))
	wantNoLink(t, n)
	id := rt.ContainerID
	if got, want := strings.Join(calls(), ", "), "ADD "+id+", CHECK "+id+", GC, STATUS, DEL "+id; got != want {
		t.Errorf("the IPAM plugin was called %q, want %q", got, want)
	}
}

// Our IPAM with the reference's main plugins: what it gives out is reachable,
// and taken back by each of the verbs.
func TestIPAMForOthers(t *testing.T) {
	t.Parallel()
	const addresses = `{"type": "underlay", "ranges": [[{"subnet": "198.51.100.0/24"}], [{"subnet": "2001:db8:1::/64"}]],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}`
	for name, main := range map[string]string{
		"bridge": `"type": "bridge", "bridge": "cni0", "isGateway": true`,
		"ptp":    `"type": "ptp"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := oneHost(t)
			conf := `{"cniVersion": "1.1.0", "name": "lan", ` + main + `, "ipam": ` + addresses + `}`
			var as []*attachment
			for _, name := range []string{"c1", "c2"} {
				a := &attachment{t: t, cni: h.CNI(reference, ours), conf: conf}
				a.Namespace, a.rt = container(t, h, name)
				a.add()
				as = append(as, a)
			}
			for _, a := range as {
				settled(t, a.Namespace)
				wantOK(t, "CHECK", a.cni.Check(t.Context(), conf, a.rt))
			}
			meet(t, as[0].station, as[1].station)

			steal(t, h, as[1], "thief")
			wantError(t, as[1].cni.Check(t.Context(), conf, as[1].rt), codeCheck, "ledger", as[1].addrs[0].String())
			wantOK(t, "DEL", as[1].cni.Del(t.Context(), conf, as[1].rt))
			if held := readBooks(t, h).held(); len(held) != 2 || len(held[as[0].ID]) != 2 {
				t.Errorf("held after DEL of %s: %v, want those of the thief and of %s", as[1].ID, held, as[0].ID)
			}

			// These plugins do not pass GC on, so it is sent to ours directly.
			collect := strings.Replace(conf, `"ipam"`, `"dataDir": "`+h.DataDir+`", "runDir": "`+h.RunDir+`", "cni.dev/valid-attachments": [], "ipam"`, 1)
			_, err := call{verb: "GC", plugin: "underlay"}.run(t, h, collect)
			wantOK(t, "GC", err)
			if held := readBooks(t, h).held()[as[0].ID]; len(held) != 0 {
				t.Errorf("%v are held after GC", held)
			}
			wantOK(t, "DEL", as[0].cni.Del(t.Context(), conf, as[0].rt))
		})
	}
}

// settled waits until duplicate detection has passed all addresses.
func settled(t *testing.T, n *lab.Namespace) {
	t.Helper()
	eventually(t, "addresses of "+n.ID+" are usable", func() bool {
		return !strings.Contains(mustDo(t, n, "ip", "addr", "show"), "tentative")
	})
}
