package vxlan

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// checksums is the offload of a device by which the kernel leaves the checksum of
// what is in VXLAN to be computed last.
const checksums = "tx-checksum-ip-generic"

// mendChecksums has checksums computed before a packet gets into VXLAN, where the
// kernel would compute wrong ones: before Linux 5.7 the checksum of a packet that
// is masqueraded on its way out is computed over the outer header as well, and the
// receiver drops it.
func mendChecksums(dev string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("which kernel this is: %w", err)
	}
	if !wrongChecksums(unix.ByteSliceToString(u.Release[:])) {
		return nil
	}
	return earlyChecksums(dev)
}

// wrongChecksums reports whether a kernel computes them wrong, by its release, such
// as 5.4.0-42-generic. One that says nothing of that form is newer.
func wrongChecksums(release string) bool {
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	minor = minor[:len(minor)-len(strings.TrimLeft(minor, "0123456789"))]
	a, err := strconv.Atoi(major)
	if err != nil {
		return false
	}
	b, err := strconv.Atoi(minor)
	return err == nil && (a < 5 || a == 5 && b < 7)
}

// earlyChecksums switches the offload off.
func earlyChecksums(dev string) error {
	e, err := ethtool.NewEthtool()
	if err == nil {
		defer e.Close()
		err = e.Change(dev, map[string]bool{checksums: false})
	}
	if err != nil {
		return fmt.Errorf("switch off %s: %w", checksums, err)
	}
	return nil
}
