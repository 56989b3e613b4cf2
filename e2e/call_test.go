package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
)

// Codes of the CNI specification and of ours, as the READMEs list them.
const (
	codeVersion     = 1
	codeUnsupported = 2
	codeEnvironment = 4
	codeIO          = 5
	codeDecode      = 6
	codeConfig      = 7
	codeTryAgain    = 11
	codeStatus      = 50
	codeParent      = 100
	codeLink        = 101
	codeTaken       = 102
	codeConflict    = 103
	codeLedger      = 104
	codeCheck       = 105
)

// oneHost is a host h1 on a switch of its own.
func oneHost(t *testing.T) *lab.Host {
	t.Helper()
	h, err := lab.Test(t).AddHost(t.Context(), "h1",
		netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// call is one run of a plugin without libcni, for what that does not say, or
// says only together with other things. Empty fields are not in the
// environment.
type call struct {
	verb   string // CNI_COMMAND
	plugin string // default macvlan
	rt     *libcni.RuntimeConf
	// through runs the plugin as a child of another program than this test.
	through []string
}

// command is the process of the plugin, to be started on the host.
func (c call) command(t *testing.T, conf string) *exec.Cmd {
	t.Helper()
	if c.plugin == "" {
		c.plugin = "macvlan"
	}
	argv := append(c.through, filepath.Join(ours, c.plugin))
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(conf)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+c.verb, "CNI_PATH="+ours+":"+reference)
	if c.rt != nil {
		var args []string
		for _, a := range c.rt.Args {
			args = append(args, a[0]+"="+a[1])
		}
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+c.rt.ContainerID, "CNI_NETNS="+c.rt.NetNS,
			"CNI_IFNAME="+c.rt.IfName, "CNI_ARGS="+strings.Join(args, ";"))
	}
	return cmd
}

// run returns what the plugin printed, and the error if it printed that.
func (c call) run(t *testing.T, h *lab.Host, conf string) (stdout []byte, err error) {
	t.Helper()
	cmd := c.command(t, conf)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	failed := h.Do(cmd.Run)
	if failed == nil {
		return out.Bytes(), nil
	}
	// One document on the standard output, and no word beside it.
	failure := &types.Error{}
	if err := json.Unmarshal(out.Bytes(), failure); err != nil || complaint.Len() > 0 {
		t.Errorf("%s: %v; standard output %.500q (%v), standard error %.500q", c.verb, failed, out.Bytes(), err, complaint.Bytes())
	}
	return out.Bytes(), failure
}

// placed is lan for a call: with the host's folders, that lab.CNI would add.
func placed(t *testing.T, h *lab.Host, more keys) string {
	t.Helper()
	all := keys{"dataDir": h.DataDir, "runDir": h.RunDir}
	maps.Copy(all, more)
	return lan(t, h, all)
}

// mustDo runs a program in the namespace.
func mustDo(t *testing.T, n *lab.Namespace, argv ...string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wantError: err carries the code, and its text names all of texts.
func wantError(t *testing.T, err error, code uint, texts ...string) {
	t.Helper()
	var failure *types.Error
	if !errors.As(err, &failure) {
		t.Errorf("error is %v, want one with code %d", err, code)
		return
	}
	if failure.Code != code {
		t.Errorf("code is %d, want %d: %v", failure.Code, code, err)
	}
	for _, text := range texts {
		if !strings.Contains(failure.Msg+failure.Details, text) {
			t.Errorf("error %q does not say %q", failure, text)
		}
	}
}

func wantOK(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// books is what the host's ledger says; nothing where there is none.
type books struct {
	Addresses   []ipam.Record
	Attachments []ipam.AttachmentRecord
}

func readBooks(t *testing.T, h *lab.Host) (b books) {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Options{DataDir: h.DataDir, RunDir: h.RunDir, ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return b
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = errors.Join(
		l.Records(func(r ipam.Record) error { b.Addresses = append(b.Addresses, r); return nil }),
		l.Attachments(func(r ipam.AttachmentRecord) error { b.Attachments = append(b.Attachments, r); return nil }))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// held are the addresses that attachments have, by container ID.
func (b books) held() map[string][]string {
	held := map[string][]string{}
	for _, r := range b.Addresses {
		if r.State == ipam.Held {
			held[r.Attachment.ContainerID] = append(held[r.Attachment.ContainerID], r.Address.Addr().String())
		}
	}
	return held
}

// wantNothingHeld: no address and no attachment is in the host's ledger,
// besides addresses that rest.
func wantNothingHeld(t *testing.T, h *lab.Host) {
	t.Helper()
	b := readBooks(t, h)
	if held := b.held(); len(held) > 0 || len(b.Attachments) > 0 {
		t.Errorf("the ledger still has addresses %v, attachments %+v", held, b.Attachments)
	}
}

// state is all that a call may change.
type state struct {
	Links map[string][]lab.Link // by namespace
	Books books
}

func stateOf(t *testing.T, h *lab.Host, containers ...*lab.Namespace) state {
	t.Helper()
	s := state{Links: map[string][]lab.Link{}, Books: readBooks(t, h)}
	for _, n := range append(containers, h.Namespace) {
		links, err := n.Links(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Links[n.ID] = links
	}
	return s
}

// wantState: nothing has changed.
func wantState(t *testing.T, want, got state) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("state changed (-before +after):\n%s", diff)
	}
}
