// Package vm runs programs on a kernel that has what the machine's own kernel
// may lack: ipvlan, 802.1q, dummy, vrf, legacy iptables. The guest is User Mode
// Linux, an ordinary program (Debian package user-mode-linux), which boots in
// seconds and runs about seven times slower than the machine, on one CPU.
//
// A guest sees the machine's files, read-only. What it may write to is its own,
// in memory, and gone with it: /run, /var/lib/cni where there is such a folder,
// and TMPDIR and HOME, which lie in /run. It loads the kernel modules that are
// asked for, as any machine does (Debian package kmod). It has no network but
// lo, no input and no cgroups. When a job has ended, what it left running is
// killed; what it left in the kernel stays for the next.
//
// A guest is one tree of processes in a PID namespace, so killing the first of
// them ends it all, and so does the death of whoever started it. What jobs
// print comes out through serial lines while it is printed, so that a panic of
// the guest's kernel loses nothing. To a program that asks, its output is a
// terminal therefore; the bytes are left as they are.
package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
)

// Job is a program to run in a guest.
type Job struct {
	// Args are the program, by path or as found in the usual folders, and its
	// arguments. Required. It cannot lie in a folder that the guest covers with
	// one of its own.
	Args []string
	// Dir is the folder to run it in; "/" by default.
	Dir string
	// Env adds to the guest's own environment, which is PATH, HOME and TMPDIR.
	Env []string
	// Stdout and Stderr get what it prints, as it prints it; nil drops it. No
	// two jobs and no two streams write at the same time.
	Stdout, Stderr io.Writer
}

// Run boots a guest, runs the jobs one after the other, and ends the guest. It
// returns their exit codes as a shell has them: 127 for a program that is not
// found, 128 and more for one that was killed. A job that fails is no error.
//
// A guest that panics, that does not boot, or that is not through when ctx is
// done, is one. Then exits has the jobs that had ended, and the error tells the
// end of the guest's console.
func Run(ctx context.Context, jobs ...Job) (exits []int, err error) {
	scratch, err := os.MkdirTemp("", "underlay-vm-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()

	// The guest dies with the thread that starts it, so that has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	running, stop := context.WithCancel(ctx)
	defer stop()
	mark := "\x00" + rand.Text()
	g, err := boot(running, scratch, script(mark, jobs))
	if err != nil {
		return nil, fmt.Errorf("boot a guest: %w", err)
	}
	defer g.closeLines()

	var turn sync.Mutex
	give := func(to io.Writer, p []byte) error {
		if to == nil {
			return nil
		}
		turn.Lock()
		defer turn.Unlock()
		_, err := to.Write(p)
		return err
	}
	var copying sync.WaitGroup
	var outErr, errErr error
	copying.Go(func() {
		exits, outErr = split(g.stdout, mark, len(jobs), func(job int, p []byte) error { return give(jobs[job].Stdout, p) })
	})
	copying.Go(func() {
		_, errErr = split(g.stderr, mark, len(jobs), func(job int, p []byte) error { return give(jobs[job].Stderr, p) })
	})
	go func() {
		copying.Wait()
		stop() // nothing in it has to be written back
	}()
	ended := g.cmd.Wait()
	copying.Wait()

	switch {
	case len(exits) == len(jobs):
		return exits, errors.Join(outErr, errErr)
	case ctx.Err() != nil:
		ended = context.Cause(ctx)
	}
	return exits, fmt.Errorf("the guest ended before %q had (%w); the last of its console:\n%s",
		strings.Join(jobs[len(exits)].Args, " "), errors.Join(ended, outErr, errErr), g.console.String())
}
