package cluster

import (
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
)

// Process is a program on a host of its own, which is killed and started again.
type Process struct {
	*lab.Host
	// Env is added to the program's environment.
	Env []string

	t    testing.TB
	argv []string
	attr *syscall.SysProcAttr
	log  *os.File

	mu   sync.Mutex
	cmd  *exec.Cmd // nil while it does not run
	over chan struct{}
	// doomed: it is to die at a fault point.
	doomed bool
}

// Log is the file that has what it says.
func (p *Process) Log() string { return p.log.Name() }

// Start starts the program, unless it runs. One that is given more environment
// may end by itself: that names a fault point.
func (p *Process) Start(env ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return
	}
	cmd, over := exec.Command(p.argv[0], p.argv[1:]...), make(chan struct{})
	cmd.Env = append(append(os.Environ(), p.Env...), env...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = p.log, p.log, p.attr
	if err := p.Do(cmd.Start); err != nil {
		p.t.Errorf("start %s: %v", p.Name, err)
		return
	}
	p.cmd, p.over, p.doomed = cmd, over, len(env) > 0
	go func() {
		_ = cmd.Wait() // it was killed, most of the time
		close(over)
	}()
}

// Signal sends a signal, if the program runs.
func (p *Process) Signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s) // it may have died at a fault point
	}
}

// End sends a signal and waits for the end of the program, if it runs.
func (p *Process) End(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	select {
	case <-p.over:
		if !p.doomed {
			p.t.Errorf("%s has ended by itself: %v", p.Name, p.cmd.ProcessState)
		}
	default:
	}
	for patience := time.After(time.Minute); p.cmd != nil; {
		// Again and again, since the first process of a PID namespace does not
		// hear those for which it has no handler yet.
		_ = p.cmd.Process.Signal(s)
		select {
		case <-p.over:
			p.cmd = nil
		case <-time.After(200 * time.Millisecond):
		case <-patience:
			p.t.Errorf("%s does not end after signal %q", p.Name, s)
			_ = p.cmd.Process.Kill()
			<-p.over
			p.cmd = nil
		}
	}
}

// Died reports whether the program has ended by itself within a time.
func (p *Process) Died(wait time.Duration) bool {
	p.mu.Lock()
	over := p.over
	p.mu.Unlock()
	select {
	case <-over:
		return true
	case <-time.After(wait):
		return false
	}
}

// Cut takes the host off the switch, or puts it back.
func (p *Process) Cut(off bool) {
	state := "up"
	if off {
		state = "down"
	}
	if _, err := p.Lab().Switch.Exec(p.t.Context(), "ip", "link", "set", "dev", p.Name, state); err != nil {
		p.t.Error(err)
	}
}
