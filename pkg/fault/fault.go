//go:build !faultpoint

// Package fault marks the places between two durable steps where a crash test
// kills the process, and has a clock and a boot that such a test sets. In an
// ordinary build Point does nothing, Now is time.Now, Boot the kernel's, and
// none costs anything; with the build tag `faultpoint`, Point sends the process
// SIGKILL when the environment asks for it, Now is ahead of the machine's clock
// or behind it, and Boot is that of a machine that has been started again:
//
//	UNDERLAY_FAULT=<name>       die at the point of that name
//	UNDERLAY_FAULT=#<n>         die at the n-th point reached, counted from 1
//	UNDERLAY_FAULT_LIST=<file>  append the name of every point reached
//	UNDERLAY_CLOCK=<file>       has how far Now is ahead, such as -36h
//	UNDERLAY_BOOT=<file>        has the boot ID
package fault

import "time"

func bootFile() string { return "/proc/sys/kernel/random/boot_id" }

// Point is a place to die at; name is unique in the source.
func Point(string) {}

// Now is the wall clock, for what is compared with times on record. It is not
// for deadlines and pauses.
func Now() time.Time { return time.Now() }
