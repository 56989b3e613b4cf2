package crowd

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/underlay-cni/underlay/ipam/lease"
	"github.com/underlay-cni/underlay/ipam/registry"
	"github.com/underlay-cni/underlay/ipam/registry/etcd"
	"github.com/underlay-cni/underlay/ipam/registry/record"
)

// Fill writes what nodes have in the registry at endpoint, as if they had been
// there: their own records and blocks of a pool, one after the other.
func Fill(ctx context.Context, endpoint string, p record.Pool, nodes, blocks int) error {
	s, err := etcd.New(etcd.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	defer s.Close()
	grid, err := p.Grid(0)
	if err != nil {
		return err
	}
	r := registry.Registry{Store: s}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(64)
	var ids []lease.Node
	for i := range nodes {
		n := record.Node{Node: lease.Node(record.NewUUID()), Name: fmt.Sprint("n", i), Machine: fmt.Sprint("machine-", i), Asserted: 1}
		ids = append(ids, n.Node)
		group.Go(func() error { return r.Enroll(ctx, n) })
	}
	for i := range blocks {
		step := lease.Step{Do: lease.Send, Block: lease.Block{CIDR: grid.Block(uint64(i)), Owner: ids[i%nodes]}}
		group.Go(func() error {
			if _, a := r.Send(ctx, p.UUID, step); a.Outcome != registry.Applied {
				return fmt.Errorf("block %s: %s: %w", step.Block.CIDR, a.Outcome, a.Err)
			}
			return nil
		})
	}
	return group.Wait()
}
