# Process 1 of the guest, over the machine's files: what a booted system has, then the command, then the power goes off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exchange=/weft-exchange
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/lock /run/netns
mount -t cgroup2 cgroup2 /sys/fs/cgroup
. "$exchange/settings"
rm -rf /usr/lib/modules
ln -s "$modules" /usr/lib/modules
[ -e /lib/modules ] || ln -s "$modules" /lib/modules
hostname weft-guest
ip link set lo up
# Nothing asks for the first by itself, though most hosts have it; the second makes /dev/net/tun, as udev would.
modprobe br_netfilter
modprobe tun
: >"$exchange/booted"
finish() {
    "$@"
    echo $? >"$exchange/status.new"
    mv "$exchange/status.new" "$exchange/status"
}

if [ "$interactive" = 1 ]; then
    finish setsid --ctty --wait sh "$exchange/command" <>/dev/hvc0 >&0 2>&1
else
    # A pipe, so that nobody takes the console for a terminal with somebody before it.
    stty raw -echo </dev/hvc0
    { finish setsid --wait sh "$exchange/command"; } </dev/null 2>&1 | cat >/dev/hvc0
fi
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
