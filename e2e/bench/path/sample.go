package path

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	echoPort   = 7007
	trips      = 2000
	warmTrips  = 200
	tripOctets = 64
	// patience is how long an answer may take before the path is broken.
	patience = 5 * time.Second
)

// sample measures a bed once.
func (b *bed) sample(ctx context.Context) (s Sample, err error) {
	if s.RoundTrip, err = roundTrip(b.pods[0], b.pods[1].addr); err != nil {
		return s, fmt.Errorf("round trips: %w", err)
	}
	if s.Gigabits, err = throughput(ctx, b.pods[0], b.pods[1]); err != nil {
		return s, fmt.Errorf("throughput: %w", err)
	}
	return s, nil
}

// volume is what iperf3 sends, which takes some tenths of a second.
const volume = "128M"

// throughput has iperf3 send.
func throughput(ctx context.Context, from, to pod) (gigabits float64, err error) {
	// It serves one client, and goes when none comes.
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "--idle-timeout", "20", "--forceflush")
	out, err := server.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := to.Do(server.Start); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = server.Process.Kill()
		}
		_, _ = io.Copy(io.Discard, out)
		if ended := server.Wait(); err == nil {
			err = ended
		}
	}()
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() {
			return 0, errors.New("iperf3 does not listen")
		}
		if strings.Contains(lines.Text(), "listening") {
			break
		}
	}
	client := []string{"iperf3", "-c", to.addr.String(), "-n", volume, "-J"}
	if runtime.NumCPU() > 1 {
		client = append(client, "-A", "0,1")
	}
	text, err := from.Exec(ctx, client...)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, text)
	}
	var report struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return 0, fmt.Errorf("read the report of iperf3: %w", err)
	}
	if report.End.Received.BitsPerSecond <= 0 {
		return 0, errors.New("nothing arrived")
	}
	return report.End.Received.BitsPerSecond / 1e9, nil
}

// alone runs f on a thread of its own, on one processor of two, and ends the
// thread: sockets block it, as they do in most programs, and Go's poller is not
// measured.
func alone(cpu int, f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine
		if runtime.NumCPU() > 1 {
			var set unix.CPUSet
			set.Set(cpu)
			_ = unix.SchedSetaffinity(0, &set) // what is allowed is not ours to say
		}
		done <- f()
	}()
	return done
}

// roundTrip is the median time that an answer takes, on a new connection.
func roundTrip(from pod, to netip.Addr) (median time.Duration, err error) {
	var fd int
	err = from.Do(func() (err error) {
		if fd, err = socket(); err != nil {
			return err
		}
		// Of connect, too.
		late := unix.NsecToTimeval(int64(patience))
		return errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &late),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &late),
			unix.Connect(fd, &unix.SockaddrInet4{Port: echoPort, Addr: to.As4()}))
	})
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	defer unix.Close(fd)
	times := make([]time.Duration, trips)
	err = <-alone(0, func() error {
		buffer := make([]byte, tripOctets)
		for i := -warmTrips; i < trips; i++ {
			start := time.Now()
			if _, err := unix.Write(fd, buffer); err != nil {
				return err
			}
			if err := readFull(fd, buffer); err != nil {
				return err
			}
			if i >= 0 {
				times[i] = time.Since(start)
			}
		}
		return nil
	})
	slices.Sort(times)
	return times[trips/2], err
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func readFull(fd int, buffer []byte) error {
	for got := 0; got < len(buffer); {
		n, err := unix.Read(fd, buffer[got:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		got += max(n, 0)
	}
	return nil
}

// echo answers in a pod, one connection at a time, until stop.
func echo(in pod) (stop func() error, err error) {
	none := func() error { return nil }
	var fd int
	err = in.Do(func() (err error) {
		if fd, err = socket(); err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: echoPort}), unix.Listen(fd, 4)); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	if err != nil {
		return none, fmt.Errorf("listen in %s: %w", in.ID, err)
	}
	ended := alone(1, func() error {
		buffer := make([]byte, tripOctets)
		for {
			c, _, err := unix.Accept(fd)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return nil // stop was called
			}
			for readFull(c, buffer) == nil {
				if _, err := unix.Write(c, buffer); err != nil {
					break
				}
			}
			if err := unix.Close(c); err != nil {
				return err
			}
		}
	})
	return func() error {
		// Which wakes accept; close would not.
		return errors.Join(unix.Shutdown(fd, unix.SHUT_RD), <-ended, unix.Close(fd))
	}, nil
}
