#!/bin/busybox sh
# /init of the initramfs: load what finds the disks, then hand over to the root file system.
export PATH=/bin
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules/order); do
    busybox insmod /modules/$module.ko
done
tries=0
while [ ! -b /dev/vda1 ] && [ $tries -lt 100 ]; do
    busybox usleep 50000
    tries=$((tries + 1))
done
busybox mount -t ext4 -o rw /dev/vda1 /root || exec busybox sh
busybox mount --move /dev /root/dev
exec busybox switch_root /root /sbin/init
