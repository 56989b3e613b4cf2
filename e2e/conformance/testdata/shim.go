// This file stands in for the reference plugin's source beside its tests: the
// functions they call run the binary under judgement instead.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
)

// NetConf has the fields that the tests set.
type NetConf struct {
	types.NetConf
	Master     string
	Mode       string
	MTU        int
	LinkContNs bool
}

func main() {}

func cmdAdd(args *skel.CmdArgs) error {
	result, err := execute("ADD", args)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(result) // the suite reads the result from a pipe that it put here
	return err
}

func cmdDel(args *skel.CmdArgs) error { return silently("DEL", args) }

func cmdCheck(args *skel.CmdArgs) error { return silently("CHECK", args) }

func cmdStatus(args *skel.CmdArgs) error { return silently("STATUS", args) }

// createMacvlan is internal to the reference: a link without addresses. The
// nearest thing a binary can be asked for is an ADD without IPAM, at a version
// whose result needs no address.
func createMacvlan(conf *NetConf, ifName string, netns ns.NetNS) (*current.Interface, error) {
	return create(conf, ifName, netns, nil)
}

// createIpvlan likewise. The reference insists on an address, but takes that of
// a plugin before it.
func createIpvlan(conf *NetConf, ifName string, netns ns.NetNS) (*current.Interface, error) {
	return create(conf, ifName, netns, map[string]any{
		"cniVersion": "1.0.0", "ips": []map[string]any{{"address": "10.1.2.2/24"}},
	})
}

func create(conf *NetConf, ifName string, netns ns.NetNS, prevResult map[string]any) (*current.Interface, error) {
	object := map[string]any{
		"cniVersion": "1.0.0", "name": conf.Name, "type": conf.Type,
		"master": conf.Master, "mode": conf.Mode, "mtu": conf.MTU, "linkInContainer": conf.LinkContNs,
	}
	if prevResult != nil {
		object["prevResult"] = prevResult
	}
	stdin, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	return &current.Interface{Name: ifName}, silently("ADD", &skel.CmdArgs{
		ContainerID: "shim", Netns: netns.Path(), IfName: ifName, StdinData: stdin,
	})
}

func silently(command string, args *skel.CmdArgs) error {
	_, err := execute(command, args)
	return err
}

// execute runs $CONFORMANCE_PLUGIN. The caller's thread is locked and in the
// netns that plays the host, so the binary inherits that netns.
func execute(command string, args *skel.CmdArgs) ([]byte, error) {
	cmd := exec.Command(os.Getenv("CONFORMANCE_PLUGIN"))
	cmd.Env = append(os.Environ(),
		"CNI_COMMAND="+command, "CNI_CONTAINERID="+args.ContainerID, "CNI_NETNS="+args.Netns,
		"CNI_IFNAME="+args.IfName, "CNI_ARGS="+args.Args, "CNI_PATH="+os.Getenv("PATH"),
		"CNI_NETNS_OVERRIDE=1") // the suite's DEL may name the netns it is called in
	cmd.Stdin = bytes.NewReader(args.StdinData)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	answer := &types.Error{}
	if json.Unmarshal(out, answer) != nil || answer.Msg == "" {
		return nil, fmt.Errorf("%s: %w, and no error document: %q", command, err, out)
	}
	return nil, answer
}
