package repo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"strings"
	"testing"
)

// A test that is skipped looks like one that passes, so a test skips only for
// want of something in the kernel, through linktest: then a guest runs it.
func TestSkips(t *testing.T) {
	allowed := map[string]string{
		"ipam/ledger/disk_test.go": "needs root to mount; the rest of the package does not, and make test is run by root",
	}
	inScript := regexp.MustCompile(`(?m)^\s*(\[[^\]]*\]\s*)*skip\b`)
	judged, scripts := 0, 0
	used := make(map[string]bool)
	files(t, func(name string, text []byte) {
		switch {
		case path.Ext(name) == ".txtar":
			scripts++
			if inScript.Match(text) {
				t.Errorf("%s skips itself: let the test call linktest.Need", name)
			}
			return
		case path.Ext(name) != ".go", under(name, "pkg/link/linktest"), under(name, "e2e/vm/suite/testdata"):
			return
		}
		places := token.NewFileSet()
		file, err := parser.ParseFile(places, name, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, "_test.go") && !imports(file, "testing") {
			return
		}
		judged++
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch call.Sel.Name {
			case "Skip", "Skipf", "SkipNow":
				if used[name] = true; allowed[name] == "" {
					t.Errorf("%s skips: let it call linktest.Need, or do without", places.Position(call.Pos()))
				}
			}
			return true
		})
	})
	for name, why := range allowed {
		if !used[name] {
			t.Errorf("%s does not skip: it need not be allowed because it %s", name, why)
		}
	}
	atLeast(t, "files of tests", judged, 40)
	atLeast(t, "scripts", scripts, 4)
}

func imports(file *ast.File, name string) bool {
	for _, spec := range file.Imports {
		if spec.Path.Value == `"`+name+`"` {
			return true
		}
	}
	return false
}
