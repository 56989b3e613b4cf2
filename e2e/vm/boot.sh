# The guest's first process on the machine. $0 is the kernel, $1 a folder for
# its memory; its arguments follow.
# It stays until the kernel ends, since a kernel that panics ends itself by a
# signal, which the first process of a PID namespace would not die of.

# Files on a disk may be slow as memory, and /dev/shm may be small.
mount -t tmpfs -o size=100% guest "$1" || exit
export TMPDIR="$1"
shift
ulimit -c 0
"$0" "$@"
exit $?
