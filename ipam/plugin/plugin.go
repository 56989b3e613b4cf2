// Package plugin is the IPAM plugin of type underlay: it gives any main
// plugin addresses from the node's ledger. The main plugins of this suite do
// the same without executing it.
package plugin

import (
	"context"
	"errors"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/client"
	"github.com/underlay-cni/underlay/pkg/cni"
	"github.com/underlay-cni/underlay/pkg/fault"
)

// Main runs the call that the environment asks for and returns the exit
// status.
func Main() int {
	return cni.Plugin{Name: "underlay", Add: add, Del: del, Check: check, GC: gc, Status: status}.Main()
}

// call is a request with its configuration.
type call struct {
	req  *cni.Request
	conf cni.NetConf
	att  ipam.Attachment
	c    *client.Client
}

// open reads only what a release needs; load reads the rest.
func open(req *cni.Request) (*call, error) {
	k := &call{req: req}
	err := cni.Decode(req.Stdin, &k.conf)
	k.att = ipam.Attachment{Network: k.conf.Name, ContainerID: req.ContainerID, IfName: req.IfName}
	dataDir, runDir := ipam.Dirs(k.conf.IPAM)
	if k.conf.DataDir != "" {
		dataDir = k.conf.DataDir
	}
	if k.conf.RunDir != "" {
		runDir = k.conf.RunDir
	}
	k.c = client.New(dataDir, runDir)
	return k, err
}

func (k *call) load() (ipam.Config, error) {
	if t, err := k.conf.IPAMType(); err != nil || t == "" {
		return ipam.Config{}, cni.Errorf(types.ErrInvalidNetworkConfig, "ipam.type: is missing")
	}
	if err := k.c.CheckPlace(); err != nil {
		return ipam.Config{}, err
	}
	return ipam.Load(k.conf.IPAM, k.conf.Name, k.conf.RuntimeConfig.IPRanges)
}

func add(ctx context.Context, req *cni.Request) (*current.Result, error) {
	k, err := open(req)
	if err != nil {
		return nil, err
	}
	cfg, err := k.load()
	if err != nil {
		return nil, err
	}
	ips, err := req.RequestedIPs(&k.conf)
	if err != nil {
		return nil, err
	}
	dns, err := client.DNS(cfg)
	if err != nil {
		return nil, err
	}
	ask := ipam.AllocateRequest{
		Attachment: k.att, Owner: req.Args.Owner,
		Runtime: client.Runtime(req.Path), Netns: client.Identify(req.Netns),
	}
	ask.DrawOn(cfg)
	for _, ip := range ips {
		ask.Ask(ip.Addr, ip.Place)
	}
	got, err := k.c.Allocate(ctx, ask, nil)
	if err != nil {
		return nil, err
	}
	return client.Result(cfg, got, dns), nil
}

func del(ctx context.Context, req *cni.Request) error {
	// A value of the wrong type elsewhere is no reason to keep the address.
	k, err := open(req)
	if err != nil && k.conf.Name == "" {
		return err
	}
	_, err = k.c.Release(ctx, ipam.ReleaseRequest{Attachment: k.att}, nil)
	return err
}

func check(ctx context.Context, req *cni.Request) error {
	k, err := open(req)
	if err != nil {
		return err
	}
	prev, err := k.conf.Previous()
	if err != nil {
		return err
	}
	var want []netip.Addr
	if prev != nil {
		for _, ip := range prev.IPs {
			if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
				want = append(want, a.Unmap())
			}
		}
	}
	return k.c.Check(ctx, k.att, want)
}

func gc(ctx context.Context, req *cni.Request) error {
	began := fault.Now()
	k, err := open(req)
	if err != nil {
		return err
	}
	valid, err := k.conf.Valid()
	if err != nil {
		return err
	}
	stale, err := k.c.Stale(ctx, k.conf.Name, client.Runtime(req.Path), began, func(containerID, ifName string) bool {
		return valid[types.GCAttachment{ContainerID: containerID, IfName: ifName}]
	})
	for _, rec := range stale {
		_, rerr := k.c.Release(ctx, ipam.ReleaseRequest{Attachment: rec.Attachment, Before: began}, nil)
		err = errors.Join(err, rerr)
	}
	return err
}

func status(ctx context.Context, req *cni.Request) error {
	k, err := open(req)
	if err != nil {
		return err
	}
	cfg, err := k.load()
	if err != nil {
		return err
	}
	if err := k.c.Status(ctx, cfg); err != nil {
		return cni.Errorf(cni.CodeNotAvailable, "%w", err)
	}
	return nil
}
