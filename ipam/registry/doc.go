// Package registry is who leases which block, cluster-wide: pools, networks,
// tenants, blocks and nodes, as records in a store below one prefix.
//
//   - Each change is a compare-and-swap of one record; its outcome is applied,
//     refused or unknown, and the unknown is not hidden.
//   - A value that cannot be understood is skipped and counted, and is never
//     taken for an absent one.
//   - A view begins with a full list and follows it by watch; a watch that
//     breaks leads to a new list. What decides anything is read linearizably.
//   - Who is in a VXLAN segment is followed by those alone who are in it too.
//   - What only says that a node is alive is kept apart from what it owns, and
//     nothing is taken from a node because it is silent.
//
// Package lease is the protocol that block records go through. The stores are
// in memstore (for tests, with faults) and etcd; storetest is what each of them
// has to pass.
package registry
