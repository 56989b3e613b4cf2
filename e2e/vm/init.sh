# The guest's first process. $mark has been set; calls of job follow.
# A command that fails here ends it, and with it the kernel: its last words are
# on the console then.
set -e

# Bytes are to come out as they go in. The lines stay open for ever: the kernel
# closes its end when the last user here does.
exec 3>/dev/tty1 4>/dev/tty2 </dev/null
stty raw -echo <&3
stty raw -echo <&4

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
[ ! -d /var/lib/cni ] || mount -t tmpfs tmpfs /var/lib/cni
mkdir -p /run/home /run/tmp /run/netns /run/modules/lib
echo guest > /proc/sys/kernel/hostname
ip link set lo up

# The kernel asks for the modules that it misses.
ln -s /usr/lib/uml/modules /run/modules/lib/modules
cat > /run/modules/load <<'END'
#!/bin/sh
exec modprobe -d /run/modules "$@"
END
chmod +x /run/modules/load
echo /run/modules/load > /proc/sys/kernel/modprobe

path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
set +e

# job FOLDER [NAME=VALUE...] PROGRAM [ARGUMENT...]
job() {
	folder=$1
	shift
	(cd "$folder" && exec env -i PATH="$path" HOME=/run/home TMPDIR=/run/tmp "$@") >&3 2>&4
	code=$?
	kill -KILL -1 2>/dev/null # all but the first process
	printf '\0%s%03d' "$mark" "$code" >&3
	printf '\0%s%03d' "$mark" "$code" >&4
}

wait_for_the_end() {
	while :; do sleep 1000; done
}
