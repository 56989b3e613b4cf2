package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
	types020 "github.com/containernetworking/cni/pkg/types/020"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// printResult writes a result in the form of a version of the specification.
func printResult(w io.Writer, res *current.Result, cniVersion string) error {
	if cniVersion == "" {
		cniVersion = "0.1.0" // what the specification says of a missing version
	}
	old := strings.HasPrefix(cniVersion, "0.1.") || strings.HasPrefix(cniVersion, "0.2.")
	if old && severalOfAFamily(res.IPs) {
		// The conversion drops all but the first, without a word.
		return Errorf(types.ErrInvalidNetworkConfig,
			"cniVersion: %s tells one address of each family, and there are more; use 0.3.0 or later", cniVersion)
	}
	converted, err := res.GetAsVersion(cniVersion)
	if err != nil {
		if len(res.IPs) > 0 || !old {
			return fmt.Errorf("print result: %w", err)
		}
		// Results before 0.3.0 tell addresses alone; an attachment without
		// any is told by a result that is empty.
		converted = &types020.Result{CNIVersion: cniVersion, DNS: res.DNS}
	}
	text, err := encode(converted)
	if err == nil {
		_, err = w.Write(text)
	}
	if err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

func severalOfAFamily(ips []*current.IPConfig) bool {
	seen := make(map[bool]bool)
	for _, ip := range ips {
		is4 := ip.Address.IP.To4() != nil
		if seen[is4] {
			return true
		}
		seen[is4] = true
	}
	return false
}

// encode returns the JSON of a result. The library's own encodes one of 1.0.0
// and later, decodes that into a map and encodes the map; here it is made a
// map at once.
func encode(res types.Result) ([]byte, error) {
	r, ok := res.(*current.Result)
	if !ok {
		var b bytes.Buffer
		err := res.PrintTo(&b)
		return b.Bytes(), err
	}
	doc := object{"cniVersion": r.CNIVersion}
	for _, i := range r.Interfaces {
		o := object{"name": i.Name}
		o.set("mac", i.Mac)
		o.set("mtu", i.Mtu)
		o.set("sandbox", i.Sandbox)
		o.set("socketPath", i.SocketPath)
		o.set("pciID", i.PciID)
		doc.add("interfaces", o)
	}
	for _, ip := range r.IPs {
		o := object{"address": ip.Address.String()}
		if ip.Interface != nil {
			o["interface"] = *ip.Interface
		}
		o.setIP("gateway", ip.Gateway)
		doc.add("ips", o)
	}
	for _, route := range r.Routes {
		o := object{"dst": route.Dst.String()}
		o.setIP("gw", route.GW)
		o.set("mtu", route.MTU)
		o.set("advmss", route.AdvMSS)
		o.set("priority", route.Priority)
		if route.Table != nil {
			o["table"] = *route.Table
		}
		if route.Scope != nil {
			o["scope"] = *route.Scope
		}
		doc.add("routes", o)
	}
	if !r.DNS.IsEmpty() {
		doc["dns"] = r.DNS
	}
	return json.MarshalIndent(doc, "", "    ")
}

// object is a JSON object in the making.
type object map[string]any

// set leaves out what is "" or 0.
func (o object) set(key string, value any) {
	if value != "" && value != 0 {
		o[key] = value
	}
}

func (o object) setIP(key string, ip net.IP) {
	if ip != nil {
		o[key] = ip.String()
	}
}

func (o object) add(key string, element object) {
	list, _ := o[key].([]any)
	o[key] = append(list, map[string]any(element))
}

// output is the standard output. Writing to one whose reader is gone is an
// error, which undoes the ADD; through os.Stdout it would end the process.
type output struct{}

func (output) Write(p []byte) (n int, err error) {
	for n < len(p) {
		k, err := syscall.Write(syscall.Stdout, p[n:])
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return n, os.NewSyscallError("write", err)
		}
		n += max(k, 0)
	}
	return n, nil
}
