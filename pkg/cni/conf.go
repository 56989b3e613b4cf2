package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// NetConf is what every plugin reads of a network configuration; a plugin
// embeds it in its own. Unknown keys at the top level are left alone, since
// runtimes add theirs.
type NetConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	// IPAM is the object as it stands; nil when absent.
	IPAM json.RawMessage `json:"ipam"`
	DNS  types.DNS       `json:"dns"`
	// PrevResult is the result of the plugin before in the chain, or at CHECK
	// and DEL that of the ADD; nil when absent.
	PrevResult json.RawMessage `json:"prevResult"`
	// RuntimeConfig is what the runtime passes for declared capabilities.
	RuntimeConfig struct {
		MAC      string              `json:"mac"`
		IPs      []string            `json:"ips"`
		IPRanges [][]json.RawMessage `json:"ipRanges"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	// DataDir and RunDir place the ledger; "" means the default.
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`

	// ValidAttachments is nil when the key is absent, "null" when it is null.
	ValidAttachments json.RawMessage `json:"cni.dev/valid-attachments"`
}

// Decode reads stdin into conf, a pointer to a struct that embeds NetConf. A
// value of the wrong type is an error that names its key; the others are read
// all the same. As in package json, the case of a key does not count.
//
// Package json would first make tables of all that the struct may hold, which
// takes it longer than to read what a configuration does hold.
func Decode(stdin []byte, conf any) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &raw); err != nil {
		return decodeError("", err)
	}
	var first error
	v := reflect.ValueOf(conf).Elem()
	for _, field := range reflect.VisibleFields(v.Type()) {
		key := field.Tag.Get("json")
		value, ok := lookUp(raw, key)
		if key == "" || !ok {
			continue
		}
		err := json.Unmarshal(value, v.FieldByIndex(field.Index).Addr().Interface())
		if err != nil && first == nil {
			first = decodeError(key, err)
		}
	}
	return first
}

func lookUp(raw map[string]json.RawMessage, key string) (json.RawMessage, bool) {
	if v, ok := raw[key]; ok {
		return v, true
	}
	found := ""
	for k := range raw {
		if strings.EqualFold(k, key) && (found == "" || k < found) { // the same one each time
			found = k
		}
	}
	v, ok := raw[found]
	return v, ok && found != ""
}

// decodeError says at which place, from the configuration's top on, JSON
// could not be decoded. nil stays nil.
func decodeError(place string, err error) error {
	if err == nil {
		return nil
	}
	var te *json.UnmarshalTypeError
	isType := errors.As(err, &te)
	if isType {
		place = strings.Trim(place+"."+te.Field, ".")
	}
	if place == "" {
		place = "network configuration"
	}
	if !isType {
		return Errorf(types.ErrDecodingFailure, "%s: %w", place, err)
	}
	want := te.Type.String()
	if k := te.Type.Kind(); k == reflect.Struct || k == reflect.Map {
		want = "an object"
	}
	return Errorf(types.ErrDecodingFailure, "%s: a %s cannot stand here, want %s", place, te.Value, want)
}

// IPAMType is ipam.type; "" means the interface gets no addresses.
func (c *NetConf) IPAMType() (string, error) {
	if len(c.IPAM) == 0 || bytes.Equal(c.IPAM, []byte("null")) {
		return "", nil
	}
	var ipam struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(c.IPAM, &ipam); err != nil {
		return "", decodeError("ipam", err)
	}
	return ipam.Type, nil
}

// CheckIPAM refuses an ipam object that says everything but who is to do it.
func (c *NetConf) CheckIPAM() error {
	var keys map[string]json.RawMessage
	if t, err := c.IPAMType(); err != nil || t != "" || json.Unmarshal(c.IPAM, &keys) != nil || len(keys) == 0 {
		return err
	}
	return Errorf(types.ErrInvalidNetworkConfig, "ipam.type: is missing, and other keys are there")
}

// Previous parses PrevResult; nil when there is none.
func (c *NetConf) Previous() (*current.Result, error) {
	if len(c.PrevResult) == 0 || bytes.Equal(c.PrevResult, []byte("null")) {
		return nil, nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(c.PrevResult, &object); err != nil {
		return nil, decodeError("prevResult", err)
	}
	// It has the configuration's version, so not all runtimes write it down.
	prev := c.PrevResult
	if own, ok := lookUp(object, "cniVersion"); !ok || string(own) == `""` {
		object["cniVersion"], _ = json.Marshal(c.CNIVersion)
		prev, _ = json.Marshal(object)
	}
	raw, err := version.NewResult(c.CNIVersion, prev)
	if err != nil {
		return nil, Errorf(types.ErrDecodingFailure, "prevResult: %w", err)
	}
	res, err := current.NewResultFromResult(raw)
	if err != nil {
		return nil, Errorf(types.ErrDecodingFailure, "prevResult: %w", err)
	}
	return res, nil
}

// Valid are the attachments that GC must spare. An absent key is an error
// (an old runtime, or none at all: nothing may be removed on its word); null
// and [] mean that none is valid.
func (c *NetConf) Valid() (map[types.GCAttachment]bool, error) {
	const key = "cni.dev/valid-attachments"
	if c.ValidAttachments == nil {
		return nil, Errorf(types.ErrInvalidNetworkConfig, "%s: is missing; without it nothing is removed", key)
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(c.ValidAttachments, &list); err != nil {
		return nil, Errorf(types.ErrDecodingFailure, "%s: %w", key, err)
	}
	valid := make(map[types.GCAttachment]bool, len(list))
	for i, a := range list {
		if a.ContainerID == "" || a.IfName == "" {
			return nil, Errorf(types.ErrInvalidNetworkConfig, "%s[%d]: containerID and ifname are required", key, i)
		}
		valid[a] = true
	}
	return valid, nil
}

// String is for error messages.
func (c *NetConf) String() string { return fmt.Sprintf("network %q (%s)", c.Name, c.Type) }
