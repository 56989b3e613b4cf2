// Package record is what the registry's values mean and how they are written:
// JSON objects with a version, each under a key of its own, and no key that is
// not known.
//
// A value is decoded whole or not at all, and what decodes has been checked:
// names, UUIDs and prefixes are in their one form, and the parts of an object
// fit each other. Whether objects fit one another is the registry's to say.
package record
