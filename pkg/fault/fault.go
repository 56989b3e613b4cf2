//go:build !faultpoint

// Package fault marks the places between two durable steps where a crash test
// kills the process, and has a clock that such a test sets. In an ordinary
// build Point does nothing, Now is time.Now, and both cost nothing; with the
// build tag `faultpoint`, Point sends the process SIGKILL when the environment
// asks for it, and Now is ahead of the machine's clock or behind it:
//
//	UNDERLAY_FAULT=<name>       die at the point of that name
//	UNDERLAY_FAULT=#<n>         die at the n-th point reached, counted from 1
//	UNDERLAY_FAULT_LIST=<file>  append the name of every point reached
//	UNDERLAY_CLOCK=<file>       has how far Now is ahead, such as -36h
package fault

import "time"

// Point is a place to die at; name is unique in the source.
func Point(string) {}

// Now is the wall clock, for what is compared with times on record. It is not
// for deadlines and pauses.
func Now() time.Time { return time.Now() }
