package binaries

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Prebuilt is the environment variable that names a store. Where it is set,
// nothing is built: programs come out of the store, or are an error. It is for
// tests that run where there is no Go, no cache to write to, or a slow machine.
const Prebuilt = "UNDERLAY_PREBUILT"

// Store is a folder of programs that were built for others to use.
type Store string

// Ours builds what Ours gives for these variables.
func (s Store) Ours(ctx context.Context, variables ...string) error {
	return buildOurs(ctx, s.ours(variables), variables...)
}

// Package builds what Package gives for the folder.
func (s Store) Package(ctx context.Context, folder string) error {
	return buildPackage(ctx, s.packages(), folder)
}

// Reference builds what Reference gives for these packages.
func (s Store) Reference(ctx context.Context, packages ...string) error {
	return buildReference(ctx, s.reference(), packages...)
}

// Variables make other programs of the same name.
func (s Store) ours(variables []string) string {
	return filepath.Join(string(s), "ours", strings.Join(variables, ","))
}

func (s Store) packages() string  { return filepath.Join(string(s), "packages") }
func (s Store) reference() string { return filepath.Join(string(s), "reference") }

// prebuilt is the store to take programs from, if there is one.
func prebuilt() (s Store, ok bool) {
	s = Store(os.Getenv(Prebuilt))
	return s, s != ""
}

// give puts the programs of a folder of the store into dir, as links; all of
// them, or those that are named like the last elements of packages.
func (s Store) give(folder, dir string, packages ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var names []string
	for _, p := range packages {
		names = append(names, path.Base(p))
	}
	if len(packages) == 0 {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, entry := range entries {
			if entry.Type().IsRegular() { // a folder has what other variables make
				names = append(names, entry.Name())
			}
		}
		if len(names) == 0 {
			return fmt.Errorf("nothing is prebuilt in %s", folder)
		}
	}
	for _, name := range names {
		program := filepath.Join(folder, name)
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("not prebuilt: %w", err)
		}
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
