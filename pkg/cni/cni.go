// Package cni is the CNI contract of a plugin: environment and standard input
// in, a result or an error with its code out, and the execution of foreign
// plugins. It knows the specification and nothing of networks or addresses.
//
// The skeleton of containernetworking/cni dispatches; what it leaves to the
// plugin is done here once for all: namespaces are compared before anything
// is changed, CNI_ARGS may hold any value, every error carries a code, and a
// result that cannot be printed is undone.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// deadline bounds one call. Runtimes give up sooner or later themselves; a
// plugin that waits for ever would hold the container's namespace meanwhile.
const deadline = 60 * time.Second

// Request is one call of a plugin.
type Request struct {
	// ContainerID, Netns (a path) and IfName are as the environment had them;
	// Netns may be empty at DEL, all three at GC and STATUS.
	ContainerID string
	Netns       string
	IfName      string
	// Args is CNI_ARGS, parsed.
	Args Args
	// Path is CNI_PATH: the folders that hold plugins.
	Path string
	// Stdin is the network configuration, one JSON object.
	Stdin []byte
}

// Plugin is what a plugin's main hands over. All are required.
type Plugin struct {
	// Name is told, with the version, when no CNI_COMMAND is set.
	Name string

	Add    func(context.Context, *Request) (*current.Result, error)
	Del    func(context.Context, *Request) error
	Check  func(context.Context, *Request) error
	GC     func(context.Context, *Request) error
	Status func(context.Context, *Request) error
}

// Main runs the call that the environment asks for and returns the exit
// status of the process.
func (p Plugin) Main() int {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	about := "CNI plugin " + p.Name
	if os.Getenv("CNI_COMMAND") == "" {
		about += " " + buildVersion()
	}
	growStack()
	if e := skel.PluginMainFuncsWithError(p.funcs(ctx), version.All, about); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

// growStack grows this goroutine's stack once, while there is next to nothing
// on it. Otherwise it is moved again and again on the way down, each time with
// all that is on it.
func growStack() {
	var big [32 << 10]byte
	runtime.KeepAlive(&big)
}

// buildVersion is the module's version as the Go tool stamped it.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "of unknown version"
}

func (p Plugin) funcs(ctx context.Context) skel.CNIFuncs {
	strict, lenient := ParseArgs, func(s string) (Args, error) {
		args, _ := ParseArgs(s) // what is made with good ones is taken back with bad ones, too
		return args, nil
	}
	call := func(f func(context.Context, *Request) error, parse func(string) (Args, error)) func(*skel.CmdArgs) error {
		return func(a *skel.CmdArgs) error {
			r, err := newRequest(a, parse)
			if err == nil {
				err = f(ctx, r)
			}
			return toCNI(err)
		}
	}
	return skel.CNIFuncs{
		Add:    call(p.add, strict),
		Del:    call(p.Del, lenient),
		Check:  call(p.Check, strict),
		GC:     call(p.GC, lenient),
		Status: call(p.Status, strict),
	}
}

// add prints the result itself, so that a result which the version asked for
// cannot express, or a reader that is gone, undoes the attachment.
func (p Plugin) add(ctx context.Context, r *Request) error {
	res, err := p.Add(ctx, r)
	if err != nil {
		return err
	}
	var conf struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(r.Stdin, &conf); err != nil {
		return err
	}
	if err := printResult(output{}, res, conf.CNIVersion); err != nil {
		return errors.Join(err, p.Del(ctx, r))
	}
	return nil
}

func newRequest(a *skel.CmdArgs, parse func(string) (Args, error)) (*Request, error) {
	args, err := parse(a.Args)
	if err != nil {
		return nil, err
	}
	r := &Request{ContainerID: a.ContainerID, Netns: a.Netns, IfName: a.IfName, Args: args, Path: a.Path, Stdin: a.StdinData}
	if o := a.NetnsOverride; a.Netns == "" || o == "1" || strings.EqualFold(o, "true") {
		return r, nil
	}
	// The skeleton compares only after the call, when the harm is done.
	same, err := isOwnNetns(a.Netns)
	switch {
	case err != nil:
		return nil, err
	case same:
		return nil, Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %q is the namespace that the plugin itself runs in", a.Netns)
	}
	a.NetnsOverride = "1" // once is enough
	return r, nil
}

// isOwnNetns reports whether the network namespace at path is that of this
// process; one that is not there is not.
func isOwnNetns(path string) (bool, error) {
	var there, here syscall.Stat_t
	if syscall.Stat(path, &there) != nil {
		return false, nil
	}
	if err := syscall.Stat("/proc/self/ns/net", &here); err != nil {
		return false, fmt.Errorf("own network namespace: %w", err)
	}
	return there.Dev == here.Dev && there.Ino == here.Ino, nil
}
