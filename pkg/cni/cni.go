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
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/ns"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types020 "github.com/containernetworking/cni/pkg/types/020"
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

// Plugin is what a plugin's main hands over. All five are required.
type Plugin struct {
	// Name and Version are told when no CNI_COMMAND is set.
	Name    string
	Version string

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
	about := fmt.Sprintf("CNI plugin %s %s", p.Name, p.Version)
	if e := skel.PluginMainFuncsWithError(p.funcs(ctx), version.All, about); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

func (p Plugin) funcs(ctx context.Context) skel.CNIFuncs {
	call := func(f func(context.Context, *Request) error) func(*skel.CmdArgs) error {
		return func(a *skel.CmdArgs) error {
			r, err := newRequest(a)
			if err == nil {
				err = f(ctx, r)
			}
			return toCNI(err)
		}
	}
	return skel.CNIFuncs{
		Add:    call(p.add),
		Del:    call(p.Del),
		Check:  call(p.Check),
		GC:     call(p.GC),
		Status: call(p.Status),
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
	if err := printResult(os.Stdout, res, conf.CNIVersion); err != nil {
		return errors.Join(fmt.Errorf("print result: %w", err), p.Del(ctx, r))
	}
	return nil
}

func printResult(w io.Writer, res *current.Result, cniVersion string) error {
	if cniVersion == "" {
		cniVersion = "0.1.0" // what the specification says of a missing version
	}
	converted, err := res.GetAsVersion(cniVersion)
	if err != nil {
		if len(res.IPs) > 0 || !strings.HasPrefix(cniVersion, "0.1.") && !strings.HasPrefix(cniVersion, "0.2.") {
			return err
		}
		// Results before 0.3.0 tell addresses alone; an attachment without
		// any is told by a result that is empty.
		converted = &types020.Result{CNIVersion: cniVersion, DNS: res.DNS}
	}
	var b bytes.Buffer
	if err := converted.PrintTo(&b); err != nil {
		return err
	}
	_, err = w.Write(b.Bytes())
	return err
}

func newRequest(a *skel.CmdArgs) (*Request, error) {
	args, err := ParseArgs(a.Args)
	if err != nil {
		return nil, err
	}
	r := &Request{ContainerID: a.ContainerID, Netns: a.Netns, IfName: a.IfName, Args: args, Path: a.Path, Stdin: a.StdinData}
	if o := a.NetnsOverride; a.Netns == "" || o == "1" || strings.EqualFold(o, "true") {
		return r, nil
	}
	// The skeleton compares only after the call, when the harm is done.
	same, e := ns.CheckNetNS(a.Netns)
	switch {
	case e != nil:
		return nil, e
	case same:
		return nil, Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %q is the namespace that the plugin itself runs in", a.Netns)
	}
	return r, nil
}
