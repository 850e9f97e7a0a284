#!/bin/busybox sh
# Process 1 of the guest in the initramfs: mounts the machine's files read-only under a tmpfs overlay
# for all writes, then runs second.sh, which is in the shared directory together with the command.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module" || echo "first: $module cannot be loaded"
done </modules/order
shared=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,$shared,cache=loose" machine /lower || echo "first: the machine's files cannot be mounted"
mount -t tmpfs -o mode=0755,size=75% tmpfs /upper
mkdir /upper/changes /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /root ||
    echo "first: the layer for writes cannot be mounted"
mkdir -p /root/weft-exchange
mount -t 9p -o "$shared,cache=none" exchange /root/weft-exchange || echo "first: no way to answer the caller"
umount /sys /proc
exec switch_root /root /bin/sh /weft-exchange/second.sh
