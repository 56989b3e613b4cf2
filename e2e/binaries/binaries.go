// Package binaries builds the programs that the tests and benchmarks outside
// the plugins run: ours, through `make build`, and the reference plugins of
// containernetworking/plugins, from the release that go.mod pins and with the
// dependencies that release pins itself. Where building is out of the question,
// programs built before take their place (Prebuilt). It leaves out where they
// run.
package binaries

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// reference is the module whose plugins ours are measured against.
const reference = "github.com/containernetworking/plugins"

// Ours builds this tree's programs into dir, with the Makefile's own flags.
// Variables go to make as they are, for example "GOARCH=arm64".
func Ours(ctx context.Context, dir string, variables ...string) error {
	if s, ok := prebuilt(); ok {
		return s.give(s.ours(variables), dir)
	}
	return buildOurs(ctx, dir, variables...)
}

func buildOurs(ctx context.Context, dir string, variables ...string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	args := append([]string{"build", "BIN=" + dir}, variables...)
	_, err = run(ctx, root, "make", args...)
	return err
}

// Package builds one command of this module into dir, flags as for ours.
func Package(ctx context.Context, dir, folder string) error {
	if s, ok := prebuilt(); ok {
		return s.give(s.packages(), dir, folder)
	}
	return buildPackage(ctx, dir, folder)
}

func buildPackage(ctx context.Context, dir, folder string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	return build(ctx, root, dir, folder)
}

// Root is the folder of this module's go.mod: the nearest above the working
// directory, as the go command has it, which may not be there to ask.
func Root() (string, error) {
	here, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := here; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find go.mod: there is none in %s or above", here)
		}
	}
}

// Source is the folder of the reference module in the module cache, which is
// read-only. It is downloaded if it is not there.
func Source(ctx context.Context) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	out, err := run(ctx, root, "go", "mod", "download", "-json", reference)
	if err != nil {
		return "", err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("read the answer of go mod download: %w", err)
	}
	return module.Dir, nil
}

// Reference builds plugins of the reference release into dir, static and
// stripped as ours are. Packages are folders of that module, for example
// "./plugins/main/macvlan".
func Reference(ctx context.Context, dir string, packages ...string) error {
	if s, ok := prebuilt(); ok {
		return s.give(s.reference(), dir, packages...)
	}
	return buildReference(ctx, dir, packages...)
}

func buildReference(ctx context.Context, dir string, packages ...string) error {
	source, err := Source(ctx)
	if err != nil {
		return err
	}
	return build(ctx, source, dir, packages...)
}

func build(ctx context.Context, module, dir string, packages ...string) error {
	args := append([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, packages...)
	_, err := run(ctx, module, "go", args...)
	return err
}

// run returns what a command printed; its error carries what it complained of.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "MAKEFLAGS=") // nothing from an outer make
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, complaint.Bytes())
	}
	return out, nil
}
