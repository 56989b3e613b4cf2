//go:build race

package lease_test

// race: the detector makes the exploration ten times slower, and a search of
// one goroutine has nothing for it to find. The plain run does it in full.
const race = true
