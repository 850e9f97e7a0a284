# Process 1 of the guest on the machine's files: sets up what a booted system has, runs the command,
# and powers off.
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
# The first is not loaded on demand, though most hosts have it; the second makes /dev/net/tun, as
# udev would.
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
    # A pipe, so that programs do not take the console for an interactive terminal.
    stty raw -echo </dev/hvc0
    { finish setsid --wait sh "$exchange/command"; } </dev/null 2>&1 | cat >/dev/hvc0
fi
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
