package path

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/underlay-cni/underlay/e2e/lab"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

// The VXLAN of both variants, and what it leaves of the hosts' MTU.
const (
	overlayVNI  = 7
	overlayPort = 8472
	overlayMTU  = 1450
	// starting is how long agents and their routes may take.
	starting = 30 * time.Second
)

// overlayByHand connects a pod as byHand does, by a VXLAN device between the hosts.
func (b *bed) overlayByHand(ctx context.Context, _ Config, h *lab.Host, i int) error {
	p, other, gateway := &b.pods[i], 1-i, in(i, 1)
	p.addr = in(i, 2)
	mac := func(i int) string { return fmt.Sprintf("02:00:00:00:00:%02x", i+1) }
	return errors.Join(
		forward(h),
		ip(ctx, h.Namespace,
			"link add pod mtu "+fmt.Sprint(overlayMTU)+" type veth peer name eth0 netns "+p.ID,
			fmt.Sprintf("addr add %s/32 dev pod", gateway),
			"link set pod up",
			fmt.Sprintf("route add %s/32 dev pod", p.addr),
			fmt.Sprintf("link add overlay address %s type vxlan id %d dstport %d local %s dev %s nolearning", mac(i), overlayVNI, overlayPort, address(i), lab.Parent),
			fmt.Sprintf("addr add %s/32 dev overlay", in(i, 0)),
			"link set overlay up",
			fmt.Sprintf("neigh add %s lladdr %s dev overlay nud permanent", in(other, 0), mac(other)),
			fmt.Sprintf("route add %s via %s dev overlay onlink", block(other), in(other, 0))),
		bridgeFDB(ctx, h, mac(other), other),
		ip(ctx, p.Namespace,
			fmt.Sprintf("addr add %s/32 dev eth0", p.addr),
			fmt.Sprintf("link set eth0 mtu %d up", overlayMTU),
			fmt.Sprintf("route add default via %s dev eth0 onlink", gateway)))
}

func bridgeFDB(ctx context.Context, h *lab.Host, mac string, other int) error {
	_, err := h.Exec(ctx, "bridge", "fdb", "add", mac, "dev", "overlay", "dst", address(other).String())
	return err
}

// ours has an agent on each host keep the routes, or the VXLAN device, and hostgw
// connect a pod. The first host's agent has the registry.
func (b *bed) ours(ctx context.Context, cfg Config, h *lab.Host, i int) error {
	registry := object{"etcd": object{"endpoints": []string{"http://" + address(0).String() + ":2379"}}}
	if i == 0 {
		registry = object{"embedded": object{"dataDir": h.DataDir + "-etcd", "listen": address(0).String() + ":2379"}}
	}
	err := b.agent(ctx, cfg, h, object{
		"nodeName": h.Name, "dataDir": h.DataDir, "runDir": h.RunDir, "registry": registry,
		"parents": object{"lan": object{"name": lab.Parent}},
	})
	if err != nil {
		return err
	}
	hostgw := object{"type": "hostgw", "master": lab.Parent, "ipam": object{"type": "underlay", "pool": "pods", "routes": everywhere}}
	if b.variant == OursBridge {
		hostgw["bridge"] = "ul0"
	}
	network, chain := object{"backend": "hostgw"}, []object{hostgw}
	if b.variant == OursOverlay {
		network = object{"backend": "vxlan", "vni": overlayVNI, "port": overlayPort}
		chain = append(chain, object{"type": "vxlan", "mode": "routed"})
	}
	if i == 0 {
		pool := object{"version": 1, "name": "pods", "kind": "routed", "ranges": [][]object{{{"subnet": "10.1.0.0/16"}}}}
		maps.Copy(network, object{"version": 1, "name": "pods", "pool": "pods"})
		if err := b.create(ctx, cfg, h, "pool", pool); err != nil {
			return err
		}
		if err := b.create(ctx, cfg, h, "network", network); err != nil {
			return err
		}
	}
	if err := b.attach(ctx, cfg.Bin, h, i, chain...); err != nil || i == 0 {
		return err
	}
	for end := time.Now().Add(starting); ; {
		ok, err := b.pods[1].Ping(ctx, b.pods[0].addr, time.Second)
		if ok || err != nil || time.Now().After(end) {
			return err
		}
	}
}

// agent starts a host's agent, and waits until it is ready; it ends with the bed.
func (b *bed) agent(ctx context.Context, cfg Config, h *lab.Host, conf object) error {
	text, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	file := h.DataDir + ".json"
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(cfg.Bin, "underlayd"), "--config", file)
	cmd.Stderr = &log
	if err := h.Do(cmd.Start); err != nil {
		return err
	}
	b.dels = append(b.dels, func(context.Context) error {
		return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	})
	client := api.NewClient(h.RunDir)
	defer client.Close()
	for end := time.Now().Add(starting); ; time.Sleep(50 * time.Millisecond) {
		switch r, err := client.Ready(ctx); {
		case err == nil && r.Ready:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("the agent of %s is not ready: %w\n%s", h.Name, err, log.String())
		}
	}
}

// create makes an object of the cluster.
func (b *bed) create(ctx context.Context, cfg Config, h *lab.Host, noun string, o object) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	file := h.DataDir + "-" + noun + ".json"
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	_, err = h.Exec(ctx, filepath.Join(cfg.Bin, "underlayctl"), "--run-dir", h.RunDir, noun, "create", file)
	return err
}
