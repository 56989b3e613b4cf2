package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
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

// Locate adds to an error about a file of ours where in its text that is: at the
// place that the error begins with, or where the JSON breaks off. root is what
// places are written below, such as `pool`; "" for nothing.
func Locate(text []byte, root string, err error) error {
	if err == nil {
		return nil
	}
	place, _, _ := strings.Cut(err.Error(), ": ")
	field, isField := err.(*FieldError)
	if isField {
		place = field.Place
	}
	at, known := 0, false
	var syntax *json.SyntaxError
	if place == root && errors.As(json.Unmarshal(text, new(json.RawMessage)), &syntax) {
		// Offset counts the bytes that were read, the wrong one included, if one
		// is wrong and not the rest missing.
		at, known = int(syntax.Offset), true
		if at > 0 && !strings.HasPrefix(syntax.Error(), "unexpected end") {
			at--
		}
	} else {
		at, known = find(text, 0, strings.TrimPrefix(strings.TrimPrefix(place, root), "."))
	}
	if !known {
		return err
	}
	line := 1 + bytes.Count(text[:at], []byte{'\n'})
	column := 1 + len([]rune(string(text[bytes.LastIndexByte(text[:at], '\n')+1:at])))
	where := fmt.Sprintf(" (line %d, column %d)", line, column)
	if isField {
		return &FieldError{Place: field.Place, Msg: field.Msg + where, Code: field.Code}
	}
	return fmt.Errorf("%w%s", err, where)
}

// find returns where in a value, which begins at an offset of the text, the key or
// element of a place such as `api.group` or `ranges[0][1].gateway` begins; of one
// that is missing, what it is missing from. known is false where not even that is
// there.
func find(text []byte, begin int, place string) (at int, known bool) {
	if place == "" {
		return begin, false
	}
	dec := json.NewDecoder(bytes.NewReader(text[begin:]))
	opening, err := dec.Token()
	if err != nil || opening != json.Delim('{') && opening != json.Delim('[') {
		return begin, false
	}
	for i := 0; dec.More(); i++ {
		part := "[" + strconv.Itoa(i) + "]"
		key := begin + int(dec.InputOffset())
		key += len(text[key:]) - len(bytes.TrimLeft(text[key:], ", \t\r\n"))
		if opening == json.Delim('{') {
			name, err := dec.Token()
			if err != nil {
				return begin, false
			}
			part = name.(string)
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return begin, false
		}
		rest, ok := strings.CutPrefix(place, part)
		if !ok || rest != "" && rest[0] != '.' && rest[0] != '[' {
			continue
		}
		inner := begin + int(dec.InputOffset()) - len(value)
		if at, known := find(text, inner, strings.TrimPrefix(rest, ".")); known {
			return at, true
		}
		return key, true
	}
	return begin, false
}
