package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sigs.k8s.io/yaml"
)

// guide is the commands of the operations guide, by the heading above them; of
// one with several blocks, in their order.
func guide(t *testing.T) map[string][][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "conf", "operations", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][][]string{}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		heading, rest, _ := strings.Cut(section, "\n")
		for _, b := range regexp.MustCompile("(?s)```sh\n(.*?)\n```").FindAllStringSubmatch(rest, -1) {
			blocks[heading] = append(blocks[heading], strings.Split(b[1], "\n"))
		}
	}
	return blocks
}

// operator is a person at a host, who types what the guide says.
type operator struct {
	*member
	t   *testing.T
	dir string // in the place of folders of a real host
	own string // networks that are the test's, of all on this machine
}

func newOperator(t *testing.T, m *member, networks string) *operator {
	t.Helper()
	o := &operator{member: m, t: t, dir: t.TempDir(), own: networks}
	for _, dir := range []string{"bin", "backups", "prometheus"} {
		if err := os.Mkdir(filepath.Join(o.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`#!/bin/sh
case "$1 $2" in
"ledger rebuild") set -- "$@" --network %s ;;
esac
exec %s/underlayctl --data-dir %s --run-dir %s "$@"
`, o.own, ours, m.DataDir, m.RunDir)
	if err := os.WriteFile(filepath.Join(o.dir, "bin", "underlayctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return o
}

// types runs commands in the host's namespace, and has the agent started and
// stopped as systemd would. It returns what all of them printed.
func (o *operator) types(lines []string) (said string) {
	o.t.Helper()
	places := strings.NewReplacer("/var/backups/", o.dir+"/backups/", "/run/underlay/", o.RunDir+"/",
		"/var/lib/prometheus/node-exporter/", o.dir+"/prometheus/", " n3 ", " h3 ")
	for _, line := range lines {
		switch line {
		case "systemctl stop underlayd":
			o.end(syscall.SIGTERM)
		case "systemctl start underlayd":
			o.start(ours)
			o.ready()
		case "systemctl restart underlayd":
			o.end(syscall.SIGTERM)
			o.start(ours)
			o.ready()
		default:
			said += mustDo(o.t, o.Namespace, "env", "PATH="+o.dir+"/bin:"+os.Getenv("PATH"), "sh", "-ec", places.Replace(line))
		}
	}
	return said
}

// TestOperations: the guide's commands do what it says they do.
func TestOperations(t *testing.T) {
	t.Parallel()
	c := newPeers(t, 3)
	c.pool(clusterPool)
	h1, h2, h3 := c.hosts[0], c.hosts[1], c.hosts[2]
	commands := guide(t)
	block := func(heading string, n int) (lines []string) {
		t.Helper()
		if len(commands[heading]) <= n {
			t.Fatalf("the guide has %d blocks under %q", len(commands[heading]), heading)
		}
		lines = commands[heading][n]
		commands[heading][n] = nil
		return lines
	}
	// The machine has other labs' containers, too.
	conf := h2.fromPool("tenants", keys{"name": h2.ID})
	kept := attach(t, h2.Host, "kept", conf)
	h3.pod("a", nil)
	h1.pod("a", nil)
	o := newOperator(t, h2, h2.ID)

	if said := o.types(block("Upgrade", 0)); !strings.Contains(said, "Version:") || !strings.Contains(said, "2 held") {
		t.Errorf("upgrade: %s", said)
	}
	o.types(block("Backups", 0))
	for _, copied := range []string{"underlay-before-upgrade.db", "underlay-ledger.db", "underlay-ledger.json"} {
		if info, err := os.Stat(filepath.Join(o.dir, "backups", copied)); err != nil || info.Size() == 0 {
			t.Errorf("backup %s: %v", copied, err)
		}
	}

	h2.end(syscall.SIGKILL)
	if err := os.Remove(filepath.Join(h2.DataDir, "ledger.db")); err != nil {
		t.Fatal(err)
	}
	h2.start(ours)
	_, rt := container(t, h2.Host, "next")
	_, err := h2.CNI(ours).Add(t.Context(), conf, rt)
	wantError(t, err, codeLedger, "underlayctl ledger rebuild")
	o.types(block("Backups", 1))
	wantOK(t, "CHECK", kept.cni.Check(t.Context(), kept.conf, kept.rt))
	eventually(t, "the lost ledger's session is over", func() bool {
		_, err = h2.CNI(ours).Add(t.Context(), conf, rt)
		return err == nil
	})

	h1.routesTo("192.0.2.3", "2001:db8::3")
	h3.end(syscall.SIGKILL)
	eventually(t, "h3 is heard of no more", func() bool {
		return strings.Contains(ctl(t, h1.Host, "node", "show", "h3"), "silent")
	})
	if said := newOperator(t, h1, h1.ID).types(block("Replace a node", 0)); !strings.Contains(said, "removed") {
		t.Errorf("replace a node: %s", said)
	}
	h1.routesTo()
	for _, dir := range []string{h3.DataDir, h3.RunDir} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	h3.start(ours) // on a new machine
	h3.ready()
	eventually(t, "h3 has joined again", func() bool {
		return strings.Count(ctl(t, h1.Host, "node", "list"), "h3") == 2
	})

	o.types(block("Metrics", 0))
	metrics, err := os.ReadFile(filepath.Join(o.dir, "prometheus", "underlay.prom"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"underlay_addresses", "underlay_request_seconds_sum", "underlay_lease_waits_total"} {
		if !strings.Contains(string(metrics), "\n"+name+"{") {
			t.Errorf("the guide names %s, which is not in the metrics:\n%s", name, metrics)
		}
	}
	wantAlerts(t, string(metrics))
	for heading, blocks := range commands {
		if slices.ContainsFunc(blocks, func(b []string) bool { return b != nil }) {
			t.Errorf("commands under %q are run by no test: %q", heading, blocks)
		}
	}
}

// Parts of an expression that can be told from metrics: those that are compared
// with a number can be judged as well.
var (
	selector = regexp.MustCompile(`\b(underlay_[a-z_]+)(?:\{(\w+)(=~?)"([^"]*)"\})?`)
	simple   = regexp.MustCompile(`^(underlay_[a-z_]+(?:\{\w+="\w+"\})?) (==|<|>) ([0-9.e+]+)$`)
	command  = regexp.MustCompile(`underlayctl ([a-z]+) ([a-z]+)`)
)

// wantAlerts: the sample's rules are about metrics and labels that there are,
// none fires on hosts that are well, and the commands that they name are there.
func wantAlerts(t *testing.T, metrics string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "conf", "prometheus", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil || len(file.Groups) != 1 || len(file.Groups[0].Rules) < 10 {
		t.Fatalf("alerts: %+v, %v", file, err)
	}
	for _, r := range file.Groups[0].Rules {
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["action"] == "" {
			t.Errorf("%s says not how bad it is, what it is or what to do", r.Alert)
		}
		for _, m := range selector.FindAllStringSubmatch(r.Expr, -1) {
			for _, value := range strings.Split(m[4], "|") {
				want := "\n" + m[1] + `[ {]`
				if m[2] != "" {
					want = "\n" + m[1] + `\{(.*,)?` + m[2] + `="` + value + `"`
				}
				if !regexp.MustCompile(want).MatchString(metrics) {
					t.Errorf("%s: there is no %s in the metrics", r.Alert, want[1:])
				}
			}
		}
		if m := simple.FindStringSubmatch(r.Expr); m != nil && fires(t, metrics, m[1], m[2], m[3]) {
			t.Errorf("%s fires on a host that is well", r.Alert)
		}
		for _, m := range command.FindAllStringSubmatch(r.Annotations["action"], -1) {
			out, err := exec.CommandContext(t.Context(), filepath.Join(ours, "underlayctl"), m[1], m[2], "--help").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "underlayctl "+m[1]+" "+m[2]) {
				t.Errorf("%s names %s: %v\n%s", r.Alert, m[0], err, out)
			}
		}
	}
}

// fires says whether a metric compares so with a number.
func fires(t *testing.T, metrics, name, how, number string) bool {
	t.Helper()
	_, rest, _ := strings.Cut(metrics, "\n"+name+" ")
	word, _, _ := strings.Cut(rest, "\n")
	got, err := strconv.ParseFloat(word, 64)
	if err != nil {
		t.Errorf("%s is %q", name, word)
	}
	limit, err := strconv.ParseFloat(number, 64)
	if err != nil {
		t.Error(err)
	}
	return how == "==" && got == limit || how == "<" && got < limit || how == ">" && got > limit
}
