// Package containerd asks containerd which containers it knows, over the socket
// of its gRPC API. Containers, sandboxes and all namespaces count; whether they
// run does not.
//
// Left out: who else may run containers on the node. What containerd does not
// know may be another program's.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	sandbox "github.com/containerd/containerd/api/services/sandbox/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// namespaceKey is where a request says which namespace it is about.
const namespaceKey = "containerd-namespace"

// Client asks the containerd that listens on Socket, an absolute path.
type Client struct{ Socket string }

// Runtimes are the names that ipam/client.Runtime has for programs that call
// plugins for containers of containerd: the daemon itself for Kubernetes, and
// the clients that do it on their own.
func (Client) Runtimes() []string { return []string{"containerd", "ctr", "nerdctl"} }

// Known lists the IDs by which plugins are told of the containers that
// containerd has: for Kubernetes the ID of the sandbox, for ctr and nerdctl
// "namespace-ID". There is no connection between two calls.
func (c Client) Known(ctx context.Context) (_ map[string]bool, err error) {
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("containerd on %q: %w", c.Socket, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	known, err := list(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("containerd on %q: %w", c.Socket, err)
	}
	return known, nil
}

func list(ctx context.Context, conn *grpc.ClientConn) (map[string]bool, error) {
	all, err := namespaces.NewNamespacesClient(conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	known := map[string]bool{}
	for _, n := range all.GetNamespaces() {
		note := func(id string) { known[id], known[n.GetName()+"-"+id] = true, true }
		within := metadata.AppendToOutgoingContext(ctx, namespaceKey, n.GetName())
		if err := listContainers(within, conn, note); err != nil {
			return nil, fmt.Errorf("list the containers of namespace %q: %w", n.GetName(), err)
		}
		if err := listSandboxes(within, conn, note); err != nil {
			return nil, fmt.Errorf("list the sandboxes of namespace %q: %w", n.GetName(), err)
		}
	}
	return known, nil
}

// listContainers has them come one by one: each brings its whole specification,
// and in one message a few hundred would be more than gRPC takes.
func listContainers(ctx context.Context, conn *grpc.ClientConn, note func(id string)) error {
	stream, err := containers.NewContainersClient(conn).ListStream(ctx, &containers.ListContainersRequest{})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		note(m.GetContainer().GetID())
	}
}

// listSandboxes lists what is a sandbox before it is a container, or without
// being one. Before containerd 1.7 there was no such thing.
func listSandboxes(ctx context.Context, conn *grpc.ClientConn, note func(id string)) error {
	all, err := sandbox.NewStoreClient(conn).List(ctx, &sandbox.StoreListRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	for _, s := range all.GetList() {
		note(s.GetSandboxID())
	}
	return err
}
