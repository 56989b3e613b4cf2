// Package cluster has the nouns of underlayctl that are about all nodes: pools
// that nodes lease from, networks, VXLAN segments, tenants, nodes, leases, and
// the registry that knows them. The agent on this node is asked, which alone speaks to the
// registry; without it there is nothing to show and nothing to change.
//
// A file is a noun. What the agent answers is printed as it came: the checks
// are the agent's.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/pkg/agent/api"
	"github.com/underlay-cni/underlay/pkg/cli/term"
)

// patience is how long a command waits for the agent.
const patience = 30 * time.Second

// Commands makes the commands. Its fields are read when one runs; all are
// required.
type Commands struct {
	// RunDir is the folder of the agent's socket.
	RunDir func() string
	Output *term.Format
}

// Nouns are those that are only here; the verbs of Pool belong to a noun that
// has others.
func (c Commands) Nouns() []*cobra.Command {
	return []*cobra.Command{c.lease(), c.network(), c.node(), c.peer(), c.registry(), c.segment(), c.tenant()}
}

func (c Commands) print(cmd *cobra.Command, v any, people func(*term.Table)) error {
	return term.Print(cmd.OutOrStdout(), *c.Output, v, people)
}

// ask runs f with a client of the agent, and adds to its error what to do next.
func (c Commands) ask(cmd *cobra.Command, f func(context.Context, *api.Client) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), patience)
	defer cancel()
	client := api.NewClient(c.RunDir())
	defer client.Close()
	return Advise(f(ctx, client), c.RunDir())
}

// Advise adds to an error of the agent in runDir what to do next.
func Advise(err error, runDir string) error {
	switch socket := filepath.Join(runDir, api.SocketName); {
	case term.HasHint(err): // who asked knows better
	case errors.Is(err, api.ErrNoAgent):
		return term.Hint(fmt.Errorf("%w: nobody listens on %q", api.ErrNoAgent, socket), "the registry is the agent's: start underlayd; --run-dir names another folder")
	case errors.Is(err, fs.ErrPermission):
		return term.Hint(fmt.Errorf("agent on %q: %w", socket, fs.ErrPermission), `root may use it, and the group of "api" in /etc/underlay/underlayd.json`)
	case errors.Is(err, api.ErrNoRegistry):
		return term.Hint(err, `say where it is with "registry" in /etc/underlay/underlayd.json, and restart underlayd`)
	case errors.Is(err, api.ErrUnreachable):
		return term.Hint(err, "see whether etcd runs and this node reaches it; the log of underlayd says more")
	case errors.Is(err, context.DeadlineExceeded):
		return term.Hint(errors.New("the agent does not answer in time"), "the log of underlayd says more")
	}
	return err
}

// document reads the file that an argument names; "-" is stdin.
func document(cmd *cobra.Command, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(file)
}

// nameIn is the name in a document, which an update needs for its address.
func nameIn(what string, text []byte) (string, error) {
	var w struct {
		Name string `json:"name"`
	}
	err := json.Unmarshal(text, &w)
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind) && kind.Field != "":
		err = fmt.Errorf("%s.name: a %s cannot stand here, want a string", what, kind.Value)
	case errors.As(err, &kind):
		err = fmt.Errorf("%s: a %s cannot stand here, want an object", what, kind.Value)
	case err != nil:
		err = fmt.Errorf("%s: %w", what, err)
	}
	if err != nil {
		return "", ipam.Locate(text, what, err)
	}
	if w.Name == "" {
		return "", fmt.Errorf("%s.name: is missing", what)
	}
	return w.Name, nil
}

// who is a node for people: its name, or else its UUID.
func who(n *api.NodeName) string {
	switch {
	case n == nil:
		return ""
	case n.Name != "":
		return n.Name
	}
	return n.Node
}
