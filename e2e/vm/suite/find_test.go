package suite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	lt "github.com/underlay-cni/underlay/pkg/link/linktest"
)

func TestFind(t *testing.T) {
	t.Parallel()
	const head = `package p

import (
	"testing"

	"` + linktest + `"
)
`
	tests := []struct {
		name  string
		files map[string]string
		want  []Package
		err   string
	}{
		{
			name: "called by a test", files: map[string]string{"a/p_test.go": head + `
				func TestB(t *testing.T) { linktest.Need(t, "vrf") }
				func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { linktest.Need(t, "vrf") }) }
				func TestC(t *testing.T) {}
				func Test(t *testing.T) { linktest.Need(t) }
				func FuzzA(f *testing.F) { linktest.Need(f) }
				func Testament(t *testing.T) {}`},
			want: []Package{{Dir: "a", Tests: []string{"FuzzA", "Test", "TestA", "TestB"}}},
		},
		{
			name: "called by a function of another file", files: map[string]string{
				"a/lab_test.go": head + `
				func lab(t *testing.T) { kinds(t) }
				func kinds(t *testing.T) { linktest.Need(t) }`,
				"a/p_test.go": "package p; import `testing`; func TestA(t *testing.T) { lab(t) }; func TestB(t *testing.T) { b(t) }; func b(t *testing.T) { b(t) }",
			},
			want: []Package{{Dir: "a", Tests: []string{"TestA"}}},
		},
		{
			name: "called by a method", files: map[string]string{"p_test.go": head + `
				type host struct{}
				func (host) ipvlan(t *testing.T) { linktest.Need(t) }
				func (host) veth(t *testing.T) {}
				func TestA(t *testing.T) { host{}.ipvlan(t) }
				func TestB(t *testing.T) { host{}.veth(t) }`},
			want: []Package{{Dir: ".", Tests: []string{"TestA"}}},
		},
		{
			name: "called through a table", files: map[string]string{"p_test.go": head + `
				var table = []func(*testing.T){ipvlan}
				func ipvlan(t *testing.T) { linktest.Need(t) }
				func TestA(t *testing.T) { table[0](t) }
				func TestB(t *testing.T) {}`},
			want: []Package{{Dir: ".", Tests: []string{"TestA"}}},
		},
		{
			name: "passed on", files: map[string]string{"p_test.go": head + `
				var need = linktest.Need
				func TestA(t *testing.T) { need(t) }`},
			want: []Package{{Dir: ".", Tests: []string{"TestA"}}},
		},
		{
			name:  "by another name",
			files: map[string]string{"p_test.go": "package p; import (`testing`; lt `" + linktest + "`); func TestA(t *testing.T) { lt.Need(t) }"},
			want:  []Package{{Dir: ".", Tests: []string{"TestA"}}},
		},
		{
			name:  "of the package from outside",
			files: map[string]string{"p.go": "package p", "p_test.go": strings.Replace(head, "package p", "package p_test", 1) + "func TestA(t *testing.T) { linktest.Need(t) }"},
			want:  []Package{{Dir: ".", Tests: []string{"TestA"}}},
		},
		{
			name:  "programs",
			files: map[string]string{"p_test.go": head + "func TestA(t *testing.T) { linktest.Need(t) }", "main_test.go": "package p; import _ `" + programs + "`"},
			want:  []Package{{Dir: ".", Tests: []string{"TestA"}, Programs: true}},
		},
		{
			name: "only of the machine", files: map[string]string{"a/p_test.go": head + `
				func TestA(t *testing.T) { linktest.Lack(t, "vlan") }`},
		},
		{
			name: "not of the module", files: map[string]string{
				"a/testdata/x/p_test.go": head + "func TestA(t *testing.T) { linktest.Need(t) }",
				".git/p_test.go":         head + "func TestA(t *testing.T) { linktest.Need(t) }",
				"_a/p_test.go":           head + "func TestA(t *testing.T) { linktest.Need(t) }",
			},
		},
		{
			name: "for no kernel", files: map[string]string{"a/p_test.go": head + `
				func TestA(t *testing.T) { linktest.Need(t); linktest.Lack(t, "vlan") }`},
			err: "a: TestA comes to both linktest.Need and linktest.Lack, which no kernel satisfies: make it two tests",
		},
		{
			name:  "of nobody",
			files: map[string]string{"a/p_test.go": head + "func TestMain(m *testing.M) { need() }; func need() { linktest.Need(nil) }"},
			err:   "a: need calls linktest.Need, but no test names it: the guest would not run what does",
		},
		{
			name:  "hidden in a library",
			files: map[string]string{"a/lab.go": head + "func Lab(t testing.TB) { linktest.Need(t) }"},
			err:   "a/lab.go imports " + linktest + ": only tests may, since only they are looked through",
		},
		{
			name:  "hidden behind a dot",
			files: map[string]string{"a/p_test.go": "package p; import . `" + linktest + "`; func TestA(t *testing.T) { Need(t) }"},
			err:   `a/p_test.go: ` + linktest + ` is imported as ".": its calls cannot be found`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for name, text := range tt.files {
				file := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Find(root)
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Fatalf("got error %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestInGuestIsLinktests(t *testing.T) {
	t.Parallel()
	if want := lt.Guest + "=1"; inGuest != want {
		t.Errorf("got %q, want %q", inGuest, want)
	}
}
