//go:build !faultpoint

// Package fault marks the places between two durable steps where a crash test
// kills the process. In an ordinary build Point does nothing and costs
// nothing; with the build tag `faultpoint`, Point sends the process SIGKILL
// when the environment asks for it:
//
//	UNDERLAY_FAULT=<name>       die at the point of that name
//	UNDERLAY_FAULT=#<n>         die at the n-th point reached, counted from 1
//	UNDERLAY_FAULT_LIST=<file>  append the name of every point reached
package fault

// Point is a place to die at; name is unique in the source.
func Point(string) {}
