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
// they do not overlap. Errors are *FieldError with the place from `ranges` on.
func LoadRanges(ranges [][]json.RawMessage) ([]RangeSet, error) {
	var c Config
	if err := c.loadSets(configWire{Ranges: ranges}, nil); err != nil {
		if fe, ok := err.(*FieldError); ok {
			fe.Place = strings.TrimPrefix(fe.Place, "ipam.")
		}
		return nil, err
	}
	return c.Pool.Sets, nil
}
