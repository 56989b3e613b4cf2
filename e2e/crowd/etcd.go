package crowd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Server is an etcd process.
type Server struct {
	// Endpoint is where clients reach it.
	Endpoint string

	cmd *exec.Cmd
}

// Serve starts Debian's etcd with its files below dir, and waits until it
// answers.
func Serve(ctx context.Context, dir string) (_ *Server, err error) {
	client, err := freePort()
	if err != nil {
		return nil, err
	}
	peer, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Server{Endpoint: "http://" + client}
	log, err := os.Create(filepath.Join(dir, "etcd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command("etcd", "--name=crowd", "--data-dir="+filepath.Join(dir, "etcd"),
		"--listen-client-urls="+s.Endpoint, "--advertise-client-urls="+s.Endpoint,
		"--listen-peer-urls=http://"+peer, "--initial-advertise-peer-urls=http://"+peer, "--initial-cluster=crowd=http://"+peer)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// It goes with whoever started it, however that ends.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for range 300 {
		if _, err = s.scrape(); err == nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), s.Stop())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil, errors.Join(err, s.Stop())
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// Stop ends the process.
func (s *Server) Stop() error {
	err := s.cmd.Process.Kill()
	_ = s.cmd.Wait() // says that it was killed
	return err
}

// Load is what a server has done since it started.
type Load struct {
	At time.Time
	// Requests by method, and messages sent on watches.
	Requests map[string]float64
	Events   float64
	// In and Out are bytes of clients.
	In, Out float64
	// CPU of the process.
	CPU time.Duration
}

// Load reads the counters.
func (s *Server) Load() (l Load, err error) {
	l = Load{At: time.Now(), Requests: map[string]float64{}}
	samples, err := s.scrape()
	if err != nil {
		return l, err
	}
	for name, value := range samples {
		method := label(name, "grpc_method")
		switch name, _, _ := strings.Cut(name, "{"); name {
		case "grpc_server_msg_received_total":
			l.Requests[method] += value
		case "grpc_server_msg_sent_total":
			if method == "Watch" {
				l.Events += value
			}
		case "etcd_network_client_grpc_received_bytes_total":
			l.In += value
		case "etcd_network_client_grpc_sent_bytes_total":
			l.Out += value
		}
	}
	l.CPU, err = CPU(s.cmd.Process.Pid)
	return l, err
}

// Since is what was done from an earlier reading to this one, each second.
func (l Load) Since(earlier Load) Load {
	seconds := l.At.Sub(earlier.At).Seconds()
	d := Load{At: l.At, Requests: map[string]float64{}, Events: (l.Events - earlier.Events) / seconds,
		In: (l.In - earlier.In) / seconds, Out: (l.Out - earlier.Out) / seconds,
		CPU: time.Duration(float64(l.CPU-earlier.CPU) / seconds)}
	for method, n := range l.Requests {
		if n -= earlier.Requests[method]; n > 0 {
			d.Requests[method] = n / seconds
		}
	}
	return d
}

// All counts the requests of all methods.
func (l Load) All() (n float64) {
	for _, m := range l.Requests {
		n += m
	}
	return n
}

// scrape reads the server's metrics.
func (s *Server) scrape() (map[string]float64, error) {
	r, err := http.Get(s.Endpoint + "/metrics")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	samples := map[string]float64{}
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(name, "#") {
			continue
		}
		if i := strings.LastIndex(lines.Text(), " "); strings.Contains(name, "{") {
			name, text = lines.Text()[:i], lines.Text()[i+1:]
		}
		if value, err := strconv.ParseFloat(text, 64); err == nil {
			samples[name] = value
		}
	}
	return samples, lines.Err()
}

func label(sample, name string) string {
	_, rest, _ := strings.Cut(sample, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// CPU is the time that a process has run for.
func CPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in brackets, may have anything in it; utime and stime are the
	// 12th and 13th field after it, in ticks of 10 ms.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// Resident is the memory of a process that is in use, in bytes.
func Resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d tells no VmRSS", pid)
}
