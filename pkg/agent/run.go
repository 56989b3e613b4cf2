package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
)

// Stdio are the streams of a run.
type Stdio struct {
	Out io.Writer
	// Err takes the log.
	Err io.Writer
}

// Run runs underlayd until ctx ends and returns its exit status: 0 when it was
// told to stop, 1 when it failed, 2 when the command line or the configuration
// is wrong.
func Run(ctx context.Context, args []string, stdio Stdio) int {
	flags := flag.NewFlagSet("underlayd", flag.ContinueOnError)
	flags.SetOutput(stdio.Err)
	file := flags.String("config", DefaultConfig, "`file` to read; the default one may be missing")
	check := flags.Bool("check", false, "read the configuration, say what is wrong with it, and exit")
	about := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stdio.Err, "underlayd: unknown argument %q\n", flags.Arg(0))
		return 2
	case *about:
		fmt.Fprintln(stdio.Out, "underlayd", version())
		return 0
	}
	conf, err := readConfig(*file)
	if err == nil && *check {
		// Else the agent serves plugins, and comes back to the registry.
		err = conf.Registry.readable()
	}
	if err != nil {
		fmt.Fprintf(stdio.Err, "underlayd: %s: %v\n", *file, err)
		return 2
	}
	if *check {
		return 0
	}
	log := slog.New(slog.NewTextHandler(stdio.Err, nil))
	a, err := New(conf, log)
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		log.Error("underlayd ends", "err", err)
		return 1
	}
	return 0
}

func readConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && path == DefaultConfig {
		c := Config{}
		return c, c.complete()
	}
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	c, err := LoadConfig(f)
	c.Registry.beside(filepath.Dir(path))
	return c, err
}

// version is the module's as the Go tool stamped it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "of unknown version"
}
