#!/bin/busybox sh
# PID 1 of the emulated host, in its initial ramdisk. Mounts the disks, brings up what a host has, runs the command
# with its output on virtio-serial ports, and reports its status on another port.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
die() { echo "emulated host: $*" >/dev/console; $b poweroff -f; }
while read -r m; do $b insmod "/modules/$m.ko" || die "cannot load the module $m"; done </modules/order
$b mount -t ext4 -o noatime /dev/vda /host || die "cannot mount the root disk"
for d in proc sys dev; do $b mount --move /$d /host/$d; done
$b mount -t tmpfs run /host/run
$b mount -t tmpfs -o mode=1777 shm /host/dev/shm 2>/dev/null ||
    { $b mkdir /host/dev/shm; $b mount -t tmpfs -o mode=1777 shm /host/dev/shm; }
$b mkdir -p /host/dev/pts
$b mount -t devpts -o ptmxmode=666 devpts /host/dev/pts
$b cp /host.sh /command.sh /host/run/
exec $b chroot /host /usr/bin/busybox sh /run/host.sh
