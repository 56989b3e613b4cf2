// Command floor is the least a macvlan plugin can do: the netlink calls of an
// ADD or DEL with one address and a default route, and no IPAM, no locks, no
// checks, no undo. What a real plugin takes beyond it is what that plugin
// costs. It answers to the CNI contract as far as libcni needs it.
package main

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// version is the one CNI version it speaks.
const version = "1.1.0"

func main() {
	runtime.LockOSThread() // setns changes one thread
	var err error
	switch command := os.Getenv("CNI_COMMAND"); command {
	case "ADD":
		err = add()
	case "DEL":
		err = del()
	case "VERSION":
		err = answer(map[string]any{"cniVersion": version, "supportedVersions": []string{version}})
	default:
		err = fmt.Errorf("CNI_COMMAND %q is none of ADD, DEL, VERSION", command)
	}
	if err != nil {
		_ = answer(map[string]any{"cniVersion": version, "code": 999, "msg": err.Error()})
		os.Exit(1)
	}
}

func add() error {
	var conf struct {
		Master string `json:"master"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		return err
	}
	parent, err := netlink.LinkByName(conf.Master)
	if err != nil {
		return err
	}
	target, err := os.Open(os.Getenv("CNI_NETNS"))
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = os.Getenv("CNI_IFNAME")
	attrs.ParentIndex = parent.Attrs().Index
	attrs.Namespace = netlink.NsFd(int(target.Fd()))
	if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		return err
	}

	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	link, err := netlink.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	address := addressOf(os.Getenv("CNI_CONTAINERID"))
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: address}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	gateway := net.IPv4(10, 10, 0, 1)
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway}); err != nil {
		return err
	}
	return answer(map[string]any{
		"cniVersion": version,
		"interfaces": []map[string]any{{
			"name": attrs.Name, "mac": link.Attrs().HardwareAddr.String(), "sandbox": os.Getenv("CNI_NETNS"),
		}},
		"ips":    []map[string]any{{"interface": 0, "address": address.String(), "gateway": gateway.String()}},
		"routes": []map[string]any{{"dst": "0.0.0.0/0", "gw": gateway.String()}},
	})
}

func del() error {
	target, err := os.Open(os.Getenv("CNI_NETNS"))
	if err != nil {
		return err
	}
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	link, err := netlink.LinkByName(os.Getenv("CNI_IFNAME"))
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// addressOf picks an address by the container's name. Two containers may well
// get the same: each is alone in its netns and nobody talks.
func addressOf(container string) *net.IPNet {
	h := fnv.New32a()
	_, _ = h.Write([]byte(container))
	sum := h.Sum32()
	return &net.IPNet{IP: net.IPv4(10, 10, byte(sum>>8)|1, byte(sum)), Mask: net.CIDRMask(16, 32)}
}

func answer(document map[string]any) error {
	return json.NewEncoder(os.Stdout).Encode(document)
}
