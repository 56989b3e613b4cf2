package migrate

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// largest is what a file of host-local may have: its two lines are names.
const largest = 4096

// HostLocal reads the folder that host-local keeps for a network: a file for each
// address, named like it, with the container's ID in the first line and, but for
// old versions, the interface in the second. Its lines end with CR LF.
func HostLocal(dir string) ([]Entry, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch {
		case f.Name() == "lock", strings.HasPrefix(f.Name(), "last_reserved_ip."):
			continue
		case f.IsDir():
			return nil, bad(path, "it is a folder; name the folder of one network, %q for instance", path)
		}
		addr, err := netip.ParseAddr(f.Name())
		if err != nil || addr.Zone() != "" {
			return nil, bad(path, "its name is no IP address, so host-local did not write it")
		}
		info, err := f.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() || info.Size() > largest {
			return nil, bad(path, "it is no file of host-local's")
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		e, err := parseHostLocal(path, b)
		if err != nil {
			return nil, err
		}
		e.Addr = addr.Unmap()
		entries = append(entries, e)
	}
	return entries, nil
}

func parseHostLocal(path string, b []byte) (Entry, error) {
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	e := Entry{Place: path + ":1", ContainerID: strings.TrimSuffix(lines[0], "\r")}
	if err := checkName(e.ContainerID); err != nil {
		return e, bad(path+":1", "the container's ID %w", err)
	}
	if len(lines) > 1 {
		e.IfName = strings.TrimSuffix(lines[1], "\r")
		if err := checkName(e.IfName); err != nil {
			return e, bad(path+":2", "the interface's name %w", err)
		}
	}
	if len(lines) > 2 {
		return e, bad(path+":3", "there is a line too many")
	}
	return e, nil
}

// checkName refuses what no runtime uses for a container or an interface.
func checkName(s string) error {
	if s == "" {
		return fmt.Errorf("is missing")
	}
	for _, r := range s {
		if r <= ' ' || r > '~' {
			return fmt.Errorf("%.80q has a character that none has", s)
		}
	}
	return nil
}
