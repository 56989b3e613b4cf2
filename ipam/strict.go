package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// decodeStrict decodes one JSON object into the struct that v points to.
// Keys must be spelled exactly as the struct's tags; any other is an error
// that names the nearest known one. Keys in ignored are known and dropped.
// place is the path of the object in the configuration.
func decodeStrict(data []byte, place string, v any, ignored ...string) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return decodeError(place, err)
	}
	if raw == nil {
		return &FieldError{Place: place, Msg: "must be an object, not null", Code: CodeDecode}
	}
	known := jsonKeys(reflect.TypeOf(v).Elem())
	keys := make([]string, 0, len(raw))
	for k := range raw {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if slices.Contains(ignored, k) {
			delete(raw, k)
			continue
		}
		if slices.Contains(known, k) {
			continue
		}
		msg := fmt.Sprintf("unknown key (value %s)", short(raw[k]))
		if near := nearest(k, known); near != "" {
			msg += fmt.Sprintf("; did you mean %q?", near)
		}
		return &FieldError{Place: join(place, k), Msg: msg, Code: CodeUnsupportedField}
	}
	val := reflect.ValueOf(v).Elem()
	for i, f := range reflect.VisibleFields(val.Type()) {
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if data, ok := raw[key]; ok {
			if err := json.Unmarshal(data, val.Field(i).Addr().Interface()); err != nil {
				return decodeError(join(place, key), err)
			}
		}
	}
	return nil
}

func join(place, key string) string {
	if place == "" {
		return key
	}
	return place + "." + key
}

func decodeError(place string, err error) error {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		if te.Field != "" {
			place = join(place, te.Field)
		}
		return &FieldError{Place: place, Msg: fmt.Sprintf("a %s cannot stand here, want %s", te.Value, te.Type), Code: CodeDecode}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("unexpected end of JSON")
	}
	return &FieldError{Place: place, Msg: err.Error(), Code: CodeDecode}
}

func jsonKeys(t reflect.Type) []string {
	var keys []string
	for _, f := range reflect.VisibleFields(t) {
		if key, _, _ := strings.Cut(f.Tag.Get("json"), ","); key != "" && key != "-" {
			keys = append(keys, key)
		}
	}
	return keys
}

func short(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		b.Write(raw)
	}
	if s := b.String(); len(s) <= 40 {
		return s
	}
	return b.String()[:37] + "..."
}

// nearest returns the known key within an edit distance of a third of the
// word, or "" when all are farther away.
func nearest(word string, known []string) string {
	best, limit := "", max(2, len(word)/3)
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d <= limit {
			best, limit = k, d-1
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(diag+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
