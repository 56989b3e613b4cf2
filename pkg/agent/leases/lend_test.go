package leases

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

const env = "/run/flannel/subnet.env"

// lender is a node that lends what the network a has of a pool.
type lender struct {
	*node
	t    *testing.T
	dir  string
	loan Loan
	told []string
	free map[string]bool // files whose blocks nobody uses
}

func newLender(t *testing.T, pool string) *lender {
	c := newCluster(t, 1, pool, 1)
	if err := (registry.Registry{Store: c.store}).CreateNetwork(t.Context(), record.Network{Name: "a", Tenant: c.pool.Tenant, Pool: "a", Backend: record.HostGW}); err != nil {
		t.Fatal(err)
	}
	l := &lender{node: c.nodes[0], t: t, dir: t.TempDir(), free: map[string]bool{}}
	l.loan = Loan{Network: "a", To: env, RunDir: l.dir, Over: func(to string, _ netip.Prefix) bool { return l.free[to] }, Told: func(why error) {
		if why != nil {
			l.told = append(l.told, why.Error())
		}
	}}
	t.Cleanup(c.check)
	return l
}

// again starts the agent again, and has it do a round.
func (l *lender) again() {
	l.t.Helper()
	l.start()
	loan := l.loan
	l.Loan = &loan
	l.told = nil
	l.c.round()
}

// lent is what the ledger and the note say, which has to be the same.
func (l *lender) lent() string {
	l.t.Helper()
	blocks, err := l.Ledger.Blocks(l.c.pool.UUID)
	if err != nil {
		l.t.Fatal(err)
	}
	noted, err := ReadLent(l.dir)
	if err != nil {
		l.t.Fatal(err)
	}
	var out, note []string
	for _, b := range blocks {
		if b.Lent != "" {
			out = append(out, fmt.Sprint(b.CIDR, " ", b.Lent))
		}
	}
	for _, n := range noted {
		note = append(note, fmt.Sprint(n.Block, " ", n.To))
	}
	if !slices.Equal(out, note) {
		l.t.Errorf("the ledger lends %q, and by the note it is %q", out, note)
	}
	return strings.Join(out, ", ")
}

func (l *lender) want(when, want string) {
	l.t.Helper()
	if got := l.lent(); got != want {
		l.t.Errorf("%s: lent %q, want %q", when, got, want)
	}
}

// lose has the ledger be lost, and made anew of what lives.
func (l *lender) lose(found ...ledger.Found) {
	l.t.Helper()
	o := l.options
	l.close()
	if err := os.WriteFile(filepath.Join(o.DataDir, "ledger.db"), []byte("no ledger"), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := ledger.Rebuild(l.t.Context(), o, found); err != nil {
		l.t.Fatal(err)
	}
}

const dual = `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/26"}],[{"subnet":"2001:db8::/64"}]],"blockPrefix":{"ipv4":29,"ipv6":125}}`

// TestLend: a block of each family is lent once, whatever comes: a restart at any
// moment, a reboot, a ledger that is lost. It is of no use here until nobody
// uses it, and nobody wants it lent.
func TestLend(t *testing.T) {
	t.Parallel()
	l := newLender(t, dual)
	l.again()
	first := l.lent()
	if strings.Count(first, env) != 2 || !strings.Contains(first, "2001:db8:") {
		t.Fatalf("lent: %q", first)
	}
	l.again()
	l.want("after a restart", first)
	// Killed before the note.
	if err := os.Remove(filepath.Join(l.dir, lentFile)); err != nil {
		t.Fatal(err)
	}
	l.again()
	l.want("without the note", first)
	l.options.BootID += "+"
	l.again()
	l.want("after a reboot", first)

	l.lose()
	l.again()
	l.want("after a rebuild", first)
	// Somebody whom the rebuild has found there keeps what he has.
	cidr := netip.MustParsePrefix(strings.Fields(first)[0])
	held := cidr.Addr().Next().Next()
	l.lose(ledger.Found{Attachment: request("x", "").Attachment, Pool: "a", Addresses: []ipam.Address{{Prefix: netip.PrefixFrom(held, 29)}}})
	l.again()
	l.want("after a rebuild that found a container", first)
	if rec, _, err := l.Ledger.Record(held); err != nil || rec.State != ipam.Held {
		t.Errorf("%s: %+v, %v", held, rec, err)
	}
	if _, err := l.Ledger.Release(ipam.ReleaseRequest{Attachment: request("x", "").Attachment}); err != nil {
		t.Fatal(err)
	}
	// No container gets what is lent, to the pool's last address.
	var full error
	for i := 0; full == nil; i++ {
		var a netip.Addr
		if a, full = l.get(fmt.Sprint("c", i), ""); cidr.Contains(a) {
			t.Errorf("%s is of a block that is lent", a)
		}
	}
	if !errors.As(full, new(*ipam.ExhaustedError)) {
		t.Errorf("at last: %v", full)
	}

	l.loan.Network, l.loan.To = "", ""
	l.again()
	l.want("without the key", first)
	l.free[env] = true
	l.loan.Network, l.loan.To = "a", env
	l.again()
	l.want("with the key, and nobody there", first)
	l.loan.Network, l.loan.To = "", ""
	l.again()
	l.want("without the key, and nobody there", "")
	if a, err := l.get("last", ""); err != nil || !cidr.Contains(a) {
		t.Errorf("of the block that was lent: %s, %v", a, err)
	}
	l.lose()
	l.again()
	l.want("after another rebuild", "")
}

// TestLendAnother: another file is for others, who may be there beside those of
// the first one.
func TestLendAnother(t *testing.T) {
	t.Parallel()
	l := newLender(t, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/26"}]],"blockPrefix":{"ipv4":29}}`)
	l.again()
	first := l.lent()
	for range 3 {
		l.c.round()
	}
	if got := l.c.owned(); got[0] != 1 {
		t.Errorf("%d blocks leased where nobody asks for an address, want the one that is lent", got[0])
	}
	l.loan.To = "/another"
	l.again()
	if both := l.lent(); strings.Count(both, ",") != 1 || !strings.Contains(both, first) || !strings.Contains(both, "/another") {
		t.Errorf("lent: %q", both)
	}
	l.free[env] = true
	l.c.round()
	if got := l.lent(); strings.Contains(got, env) || !strings.Contains(got, "/another") {
		t.Errorf("lent when the first is gone: %q", got)
	}
}

// TestLendWhole: what is lent is a block that the pool gives out as a whole, and
// the last one is as good as any.
func TestLendWhole(t *testing.T) {
	t.Parallel()
	const pool = `{"version":1,"name":"a","kind":"%s","ranges":[[{"subnet":"10.0.0.0/27","rangeStart":"10.0.0.4","exclude":["10.0.0.10"]%s}]],"blockPrefix":{"ipv4":29}}`
	for _, tt := range []struct{ name, pool, want, told string }{
		{"one of two whole ones", fmt.Sprintf(pool, "routed", ""), "", ""},
		{"the last one", fmt.Sprintf(pool, "routed", `,"rangeEnd":"10.0.0.28"`), "10.0.0.16/29 " + env, ""},
		{"none", fmt.Sprintf(pool, "routed", `,"rangeEnd":"10.0.0.20"`), "", `pool "a" has no block left, of 10.0.0.4-10.0.0.20 of 10.0.0.0/27, that nobody uses`},
		{"of a shared pool", fmt.Sprintf(pool, "shared", ""), "", `pool "a" is shared; blocks are lent of routed pools`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLender(t, tt.pool)
			l.again()
			got := l.lent()
			switch {
			case tt.told != "":
				if got != "" || len(l.told) == 0 || !strings.Contains(l.told[0], tt.told) {
					t.Errorf("lent %q, told %q, want %q", got, l.told, tt.told)
				}
			case got != tt.want && (tt.want != "" || got != "10.0.0.16/29 "+env && got != "10.0.0.24/29 "+env):
				t.Errorf("lent %q, want %q", got, tt.want)
			}
		})
	}
	// The pool's last block goes to whoever comes first: here a container.
	l := newLender(t, `{"version":1,"name":"a","kind":"routed","ranges":[[{"subnet":"10.0.0.0/29"}]],"blockPrefix":{"ipv4":29}}`)
	l.c.round()
	if _, err := l.get("c", ""); err != nil {
		t.Fatal(err)
	}
	l.again()
	if got := l.lent(); got != "" || len(l.told) != 1 {
		t.Errorf("lent %q, told %q", got, l.told)
	}
	l.release("c")
	l.c.round()
	l.want("when it is not used any more", "10.0.0.0/29 "+env)
	if _, err := l.get("d", ""); !errors.As(err, new(*ipam.ExhaustedError)) {
		t.Errorf("of the last block, lent: %v", err)
	}
}

// TestLendQuota: a tenant's quota holds for what is lent, too.
func TestLendQuota(t *testing.T) {
	t.Parallel()
	l := newLender(t, `{"version":1,"name":"a","tenant":"red","kind":"routed","ranges":[[{"subnet":"10.0.0.0/26"}]],"blockPrefix":{"ipv4":29}}`)
	if err := (registry.Registry{Store: l.c.store}).PutTenant(t.Context(), record.Tenant{Name: "red", Quota: 3}); err != nil {
		t.Fatal(err)
	}
	l.again()
	if got := l.lent(); got != "" || len(l.told) != 1 || !strings.Contains(l.told[0], "quota") {
		t.Errorf("lent %q, told %q", got, l.told)
	}
}

// TestLendRemoved: of a node that was removed nothing is left, not even by the note.
func TestLendRemoved(t *testing.T) {
	t.Parallel()
	l := newLender(t, dual)
	l.again()
	before := l.lent()
	r := registry.Registry{Store: l.c.store}
	for _, s := range mustView(t, r).Seen(l.c.pool.UUID) {
		if _, a := r.Send(t.Context(), l.c.pool.UUID, lease.Step{Do: lease.Send, Block: lease.Block{CIDR: s.Block.CIDR, Owner: "20000000-0000-4000-8000-000000000000"}, Rev: s.Rev}); a.Outcome != registry.Applied {
			t.Fatal(a)
		}
	}
	if _, err := l.Ledger.Renew(); err != nil {
		t.Fatal(err)
	}
	l.again()
	after := l.lent()
	for _, b := range strings.Split(before, ", ") {
		if after == "" || strings.Contains(after, b) {
			t.Errorf("lent %q, before %q", after, before)
		}
	}
}

func mustView(t *testing.T, r registry.Registry) *registry.View {
	t.Helper()
	v, err := r.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
