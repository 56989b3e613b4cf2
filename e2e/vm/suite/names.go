package suite

import (
	"errors"
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// names are what a folder's tests declare, and what each names in turn.
// Declarations of one name, such as methods of several types, count as one.
type names struct {
	named map[string]*node
}

type node struct {
	uses       map[string]bool
	need, lack bool // calls linktest.Need, linktest.Lack
	isTest     bool
}

// add takes up a declaration of a file that knows linktest by the name given.
func (n *names) add(decl ast.Decl, linktest string) {
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		n.node(decl.Name.Name).look(decl, linktest)
		if decl.Recv == nil && isTest(decl.Name.Name) {
			n.node(decl.Name.Name).isTest = true
		}
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			if values, ok := spec.(*ast.ValueSpec); ok {
				for _, name := range values.Names {
					n.node(name.Name).look(values, linktest)
				}
			}
		}
	}
}

func (n *names) node(name string) *node {
	if n.named[name] == nil {
		n.named[name] = &node{uses: make(map[string]bool)}
	}
	return n.named[name]
}

// look takes up what is named in a piece of source.
func (n *node) look(at ast.Node, linktest string) {
	ast.Inspect(at, func(at ast.Node) bool {
		switch at := at.(type) {
		case *ast.SelectorExpr:
			if x, ok := at.X.(*ast.Ident); ok && linktest != "" && x.Name == linktest {
				n.need = n.need || at.Sel.Name == "Need"
				n.lack = n.lack || at.Sel.Name == "Lack"
			}
		case *ast.Ident:
			n.uses[at.Name] = true
		}
		return true
	})
}

// tests are those that come to a call of linktest.Need, sorted.
func (n *names) tests() ([]string, error) {
	var found []string
	var errs []error
	reached := make(map[*node]bool)
	for _, name := range slices.Sorted(maps.Keys(n.named)) {
		if !n.named[name].isTest {
			continue
		}
		all := make(map[*node]bool)
		n.reach(name, all)
		need, lack := false, false
		for node := range all {
			reached[node] = true
			need, lack = need || node.need, lack || node.lack
		}
		if need {
			found = append(found, name)
		}
		if need && lack {
			errs = append(errs, fmt.Errorf("%s comes to both linktest.Need and linktest.Lack, which no kernel satisfies: make it two tests", name))
		}
	}
	for name, node := range n.named {
		if node.need && !reached[node] {
			errs = append(errs, fmt.Errorf("%s calls linktest.Need, but no test names it: the guest would not run what does", name))
		}
	}
	return found, errors.Join(errs...)
}

// reach collects what is named by name, and by that, and so on.
func (n *names) reach(name string, all map[*node]bool) {
	node := n.named[name]
	if node == nil || all[node] {
		return
	}
	all[node] = true
	for used := range node.uses {
		n.reach(used, all)
	}
}

// isTest says whether -test.run runs a function of that name.
func isTest(name string) bool {
	for _, prefix := range []string{"Test", "Fuzz"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && name != "TestMain" {
			first, _ := utf8.DecodeRuneInString(rest)
			return rest == "" || !unicode.IsLower(first)
		}
	}
	return false
}
