package vm

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// memory of a guest, which takes from the machine only what it touches.
const memory = "1G"

var (
	//go:embed boot.sh
	bootScript string
	//go:embed init.sh
	initScript string
)

// script is what the guest's first process runs.
func script(mark string, jobs []Job) string {
	var s strings.Builder
	fmt.Fprintf(&s, "#!/bin/sh\nmark=%s\n%s", quote(strings.TrimPrefix(mark, "\x00")), initScript)
	for _, job := range jobs {
		s.WriteString("job " + quote(filepath.Join("/", job.Dir)))
		for _, word := range slices.Concat(job.Env, job.Args) {
			s.WriteString(" " + quote(word))
		}
		s.WriteString("\n")
	}
	s.WriteString("wait_for_the_end\n")
	return s.String()
}

// quote makes any text one word of the shell.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// guest is one that runs.
type guest struct {
	cmd            *exec.Cmd
	console        tail
	stdout, stderr *os.File // serial lines, to read from
}

// boot starts a guest on a script, until ctx is done. It has to be waited for.
func boot(ctx context.Context, scratch, script string) (_ *guest, err error) {
	init, memoryDir := filepath.Join(scratch, "init"), filepath.Join(scratch, "memory")
	if err := errors.Join(os.WriteFile(init, []byte(script), 0o755), os.Mkdir(memoryDir, 0o700)); err != nil {
		return nil, err
	}
	const kernel = "linux.uml"
	if _, err := exec.LookPath(kernel); err != nil {
		return nil, fmt.Errorf("%w; try: apt-get install user-mode-linux kmod", err)
	}
	g := &guest{}
	g.cmd = exec.CommandContext(ctx, "sh", "-c", bootScript, kernel, memoryDir,
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "mem="+memory, "init="+init, "uml_dir="+scratch,
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "con2=null,fd:4")
	g.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	g.cmd.Stdout, g.cmd.Stderr = &g.console, &g.console
	g.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:    syscall.SIGKILL,
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
	}
	defer func() {
		for _, theirs := range g.cmd.ExtraFiles {
			err = errors.Join(err, theirs.Close())
		}
		if err != nil {
			g.closeLines()
		}
	}()
	for _, ours := range []**os.File{&g.stdout, &g.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		*ours = r
		g.cmd.ExtraFiles = append(g.cmd.ExtraFiles, w)
	}
	return g, g.cmd.Start()
}

func (g *guest) closeLines() {
	for _, line := range []*os.File{g.stdout, g.stderr} {
		if line != nil {
			line.Close()
		}
	}
}
