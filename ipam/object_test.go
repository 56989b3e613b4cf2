package ipam_test

import (
	"errors"
	"testing"

	"github.com/underlay-cni/underlay/ipam"
)

func TestLocate(t *testing.T) {
	t.Parallel()
	const text = `{
  "name": "a",
  "eth0.100": {"name": 7},
  "ranges": [
    [{"subnet": "x"}],
    [ {"é": 1, "gateway": "10.0.0.1"} ]
  ]
}`
	const one = "pool: bad (line 1, column "
	tests := []struct{ name, text, root, err, want string }{
		{"a key", text, "", "name: bad", "name: bad (line 2, column 3)"},
		{"below a root", text, "pool", "pool.name: bad", "pool.name: bad (line 2, column 3)"},
		{"a key with a dot", text, "", "eth0.100.name: bad", "eth0.100.name: bad (line 3, column 16)"},
		{"an element", text, "", "ranges[0][0]: bad", "ranges[0][0]: bad (line 5, column 6)"},
		{"far below", text, "", "ranges[1][0].gateway: bad", "ranges[1][0].gateway: bad (line 6, column 16)"},
		{"what is missing", text, "", "ranges[1][0].subnet: is missing", "ranges[1][0].subnet: is missing (line 6, column 7)"},
		{"missing from all", text, "", "kind: is missing", "kind: is missing"},
		{"a place that begins like a key", text, "", "names: bad", "names: bad"},
		{"no place", text, "", "bad", "bad"},
		{"of something else", "{", "pool", "nobody: bad", "nobody: bad"},
		{"no value", "{\n  \"a\": ,\n}", "pool", "pool: bad", "pool: bad (line 2, column 8)"},
		{"a comma too many", `{"a":1,}`, "pool", "pool: bad", one + "8)"},
		{"a comma too few", `{"a":1 "b":2}`, "pool", "pool: bad", one + "8)"},
		{"more after the end", `{} {}`, "pool", "pool: bad", one + "4)"},
		{"it breaks off", "{\"a\":1,\n", "pool", "pool: bad", "pool: bad (line 2, column 1)"},
		{"nothing", "", "pool", "pool: bad", one + "1)"},
	}
	for _, tt := range tests {
		if got := ipam.Locate([]byte(tt.text), tt.root, errors.New(tt.err)); got.Error() != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	if err := ipam.Locate([]byte(text), "", nil); err != nil {
		t.Error(err)
	}
	var w struct {
		Name int `json:"name"`
	}
	err := ipam.Locate([]byte(`{"name":"a"}`), "", ipam.DecodeObject([]byte(`{"name":"a"}`), "", &w))
	var field *ipam.FieldError
	if !errors.As(err, &field) || field.Place != "name" || field.Code != ipam.CodeDecode || err.Error() != "name: a string cannot stand here, want int (line 1, column 2)" {
		t.Errorf("%#v", err)
	}
}

// TestLocateSyntax: the place of what is no JSON at all is empty.
func TestLocateSyntax(t *testing.T) {
	t.Parallel()
	text := []byte("{\n\"name\": \"a\"\n\"kind\": 1}")
	err := ipam.Locate(text, "", ipam.DecodeObject(text, "", new(struct{})))
	if want := "invalid character '\"' after object key:value pair (line 3, column 1)"; err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

func FuzzLocate(f *testing.F) {
	f.Add([]byte(`{"a":[{"b":1}]}`), "a[0].b: x")
	f.Add([]byte(`[1,`), "[0]: x")
	f.Fuzz(func(t *testing.T, text []byte, msg string) {
		if got := ipam.Locate(text, "", errors.New(msg)); got == nil {
			t.Error("the error is gone")
		}
	})
}
