package runfile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRunFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "value.json")
	v := "none"
	read := func(when, want string) {
		t.Helper()
		if err := Read(path, &v); err != nil || v != want {
			t.Errorf("%s: %q, %v, want %q", when, v, err, want)
		}
	}
	read("before there is any", "none")
	for _, text := range []string{"a", "b"} {
		if err := Write(path, text); err != nil {
			t.Fatal(err)
		}
		read("written", text)
	}
	// Of another boot it says nothing, and of no sense it is an error.
	for text, bad := range map[string]bool{`{"boot":"another","value":"x"}`: false, `{"boot`: true, ``: true} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Read(path, &v); (err != nil) != bad || v != "b" {
			t.Errorf("%q: %q, %v", text, v, err)
		}
	}
	// What a kill has left does not matter.
	if err := os.WriteFile(path+".new", []byte("something longer than what is written"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, "c"); err != nil {
		t.Fatal(err)
	}
	read("after a kill", "c")
	if err := Write(filepath.Join(dir, "nosuch", "value.json"), 1); err == nil {
		t.Error("written where there is no folder")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
