//go:build faultpoint

// Package fault: see fault.go.
package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

var reached atomic.Int64

// Point kills the process with SIGKILL if UNDERLAY_FAULT names this point or
// its number.
func Point(name string) {
	n := reached.Add(1)
	if list := os.Getenv("UNDERLAY_FAULT_LIST"); list != "" {
		f, err := os.OpenFile(list, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err == nil {
			_, err = fmt.Fprintln(f, name)
			_ = f.Close()
		}
		if err != nil {
			panic("fault: " + err.Error())
		}
	}
	want := os.Getenv("UNDERLAY_FAULT")
	if want == "" || want != name && strings.TrimPrefix(want, "#") != strconv.FormatInt(n, 10) {
		return
	}
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}

// bootFile is what UNDERLAY_BOOT names, or the kernel's own.
func bootFile() string {
	if file := os.Getenv("UNDERLAY_BOOT"); file != "" {
		return file
	}
	return "/proc/sys/kernel/random/boot_id"
}

// Now is the wall clock as UNDERLAY_CLOCK says. All processes of a host that
// share the file see it jump at once.
func Now() time.Time {
	file := os.Getenv("UNDERLAY_CLOCK")
	if file == "" {
		return time.Now()
	}
	text, err := os.ReadFile(file)
	if err != nil {
		panic("fault: " + err.Error())
	}
	ahead, err := time.ParseDuration(strings.TrimSpace(string(text)))
	if err != nil {
		panic("fault: " + err.Error())
	}
	return time.Now().Add(ahead)
}
