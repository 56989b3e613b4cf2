package ipam

import (
	"encoding/json"
	"strings"
)

// DecodeObject decodes a JSON object of our own making into the struct that v
// points to. A key that is not one of its tags is an error which names the
// nearest one. Errors are *FieldError with the place from `place` on.
func DecodeObject(data []byte, place string, v any) error { return decodeStrict(data, place, v) }

// LoadRanges checks range sets in the shape that Config has them in, and that
// they do not overlap. Those of a routed pool have no gateway, and are still to
// be cut into blocks. Errors are *FieldError with the place from `ranges` on.
func LoadRanges(ranges [][]json.RawMessage, routed bool) ([]RangeSet, error) {
	var c Config
	if err := c.loadSets(configWire{Ranges: ranges}, nil, routed); err != nil {
		if fe, ok := err.(*FieldError); ok {
			fe.Place = strings.TrimPrefix(fe.Place, "ipam.")
		}
		return nil, err
	}
	return c.Pool.Sets, nil
}

// CheckName refuses what cannot be the name of a pool or of another object of
// the registry: names have to fit keys, files and metrics. Errors are
// *FieldError.
func CheckName(place, s string) error {
	if s == "" || len(s) > 63 {
		return fieldErrorf(place, "%q is not between 1 and 63 characters long", s)
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '-' || c == '_' || c == '.'):
		default:
			return fieldErrorf(place, "%q may hold letters, digits and, after the first character, dash, dot and underscore", s)
		}
	}
	return nil
}
