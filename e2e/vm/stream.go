package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// split reads what a serial line brings and gives it to write, with the number
// of the job that printed it. A job ends with the mark and three digits of its
// exit code. It returns after so many jobs, or, with an error, where the line
// ends before. When write has failed, it reads on without.
func split(line io.Reader, mark string, jobs int, write func(job int, p []byte) error) (exits []int, err error) {
	const digits = 3
	var pending []byte
	var writing error
	pass := func(n int) {
		if n > 0 && writing == nil {
			writing = write(len(exits), pending[:n])
		}
		pending = pending[n:]
	}
	chunk := make([]byte, 32<<10)
	for len(exits) < jobs {
		n, err := line.Read(chunk)
		pending = append(pending, chunk[:n]...)
		for len(exits) < jobs {
			at := bytes.Index(pending, []byte(mark))
			if at < 0 || len(pending) < at+len(mark)+digits {
				break
			}
			pass(at)
			code, err := strconv.Atoi(string(pending[len(mark) : len(mark)+digits]))
			if err != nil {
				return exits, errors.Join(writing, fmt.Errorf("exit code of job %d: %w", len(exits), err))
			}
			pending = pending[len(mark)+digits:]
			exits = append(exits, code)
		}
		if len(exits) == jobs {
			break
		}
		if err != nil {
			pass(len(pending))
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return exits, errors.Join(writing, err)
		}
		// What may become a mark has to wait.
		at := bytes.LastIndexByte(pending, mark[0])
		if at < 0 || len(pending)-at >= len(mark)+digits {
			at = len(pending)
		}
		pass(at)
	}
	return exits, writing
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 16 << 10
	t.text = append(t.text, p...)
	if len(t.text) > most {
		t.text = t.text[len(t.text)-most:]
	}
	return len(p), nil
}

func (t *tail) String() string { return string(bytes.ReplaceAll(t.text, []byte("\r"), nil)) }
