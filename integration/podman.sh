#!/usr/bin/env bash
# Podman, as root and rootless: conmon runs the containers on rrun.
OWN_CGROUPS=1 NEEDS_CRIU=1
. "$(dirname "$0")/lib.sh"
PATH=$CRIU/usr/sbin:/usr/bin:/sbin:/bin

own_run
# On v1 Podman removes a pod's cgroup in the hierarchies that it knows, and leaves it in the others, with runc too.
engine_files="^/run/(criu.kdat\$|(empty|containers|libpod|lock|crun|netns|user/1000/(libpod|containers|netns|crun|podman|[^/]*\.pid))/)" engine_cgroups="/(rrun-it|libpod_parent)(/conmon)?\$|/(unified|systemd)/libpod_parent/[0-9a-f]{64}\$"
group=rrun-it
chmod 755 "$work"
# a user may not come to where the program was built
install -m 755 "$RRUN" "$work/${RRUN##*/}"
RRUN=$work/${RRUN##*/}
image "$work/image.tar" || exit 1
echo from-host >"$work/shared"
chmod 644 "$work/shared" "$work/image.tar"
# Podman asks for more open files than a machine may allow; a configuration of our own, so that
# the machine's does not matter either.
cat >"$work/containers.conf" <<C
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
C
mkdir -p /run/empty
mount --bind /run/empty /etc/containers || exit 1
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
cat >"$work/pod.yaml" <<'C'
apiVersion: v1
kind: Pod
metadata: {name: shop}
spec:
  hostNetwork: true
  hostname: shop
  containers:
  - {name: front, image: "localhost/busybox:1", command: [sh, -c, "echo front of $WHAT; sleep 1000"], env: [{name: WHAT, value: x}], imagePullPolicy: Never}
  - {name: back, image: "localhost/busybox:1", command: [sleep, "1000"], imagePullPolicy: Never}
C
mkdir "$work/context"
cat >"$work/context/Containerfile" <<'C'
FROM localhost/busybox:1 AS build
RUN echo built >/what && chown guest /what
USER guest
RUN test -O /what && echo by $(id -un) >>/what

FROM localhost/busybox:1
COPY --from=build /what /what
RUN sed -i s/built/made/ /what
C
chmod -R a+rX "$work/context" "$work/pod.yaml"
CONTAINERS_CONF=$work/containers.conf PODMAN_IGNORE_CGROUPSV1_WARNING=1
box=localhost/busybox:1

# Everything that both kinds of user do; $podman is the command, $1 goes before each test's name.
common() {
    ok "$1: load an image" '$podman load --input "$work/image.tar"'
    prints "$1: run prints" "hello" '$podman run --rm $net $box echo hello'
    exits "$1: run passes the exit status on" 7 "" '$podman run --rm $net $box sh -c "exit 7"'
    exits "$1: missing executable" 127 "executable file" '$podman run --rm $net $box no-such-program'
    exits "$1: a folder as executable" 126 "" '$podman run --rm $net $box /tmp'
    prints "$1: stdin" "typed" 'echo typed | $podman run --rm -i $net $box cat'
    prints "$1: hostname and process 1" "box 1" '$podman run --rm $net --hostname box $box sh -c "echo \$(hostname) \$\$"'
    prints "$1: user, groups, folder" "1000 1000 2000 /tmp" '$podman run --rm $net --user guest --workdir /tmp $box sh -c "echo \$(id -u) \$(id -G) \$PWD"'
    exits "$1: read-only root" 1 "Read-only file system" '$podman run --rm $net --read-only $box touch /x'
    prints "$1: bind mount" "from-host" '$podman run --rm $net --volume $work/shared:/shared:ro $box cat /shared'
    prints "$1: volume" "kept" '$podman run --rm $net --volume vol:/v $box sh -c "echo kept >/v/f" && $podman run --rm $net --volume vol:/v $box cat /v/f'
    prints "$1: seccomp" "2" '$podman run --rm $net $box sed -n "s/^Seccomp:[[:space:]]*//p" /proc/self/status'
    prints "$1: no capabilities" "0000000000000000" '$podman run --rm $net --cap-drop all $box sed -n "s/^CapEff:[[:space:]]*//p" /proc/self/status'
    prints "$1: terminal and its size" "33 99" 'terminal "" "$podman run --rm -it $net $box sh -c \"sleep 1; stty size\""'
    exits "$1: typing at a shell" 3 "44 99" 'terminal "sleep 1; echo\nstty size; exit 3\n" "$podman run --rm -it $net $box sh"'
    ok "$1: run detached" '$podman run --name box-a -d $net $limits $box sh -c "echo started; trap \"exit 9\" TERM; while :; do sleep 0.1; done"'
    prints "$1: status running" "running" '$podman inspect --format "{{.State.Status}}" box-a'
    prints "$1: logs" "started" 'eventually sh -c "$podman logs box-a | grep -q started"; $podman logs box-a'
    prints "$1: exec" "inside" '$podman exec box-a echo inside'
    exits "$1: exec passes the exit status on" 5 "" '$podman exec box-a sh -c "exit 5"'
    exits "$1: exec of a missing program" 127 "executable file" '$podman exec box-a no-such-program'
    prints "$1: exec on a terminal" "33 99" 'terminal "" "$podman exec -it box-a sh -c \"sleep 1; stty size\""'
    ok "$1: top" '$podman top box-a pid | grep -q "^1 *$"'
}
rest() {
    ok "$1: stop" '$podman stop box-a'
    prints "$1: its exit status" "9" '$podman inspect --format "{{.State.ExitCode}}" box-a'
    ok "$1: start again" '$podman start box-a'
    ok "$1: kill" '$podman kill box-a && $podman wait box-a | grep -qx 137'
    ok "$1: remove" '$podman rm box-a'
    ok "$1: a pod" '$podman pod create --name p --infra=false && $podman run --rm --pod p $net $box true && $podman pod rm p'
    ok "$1: health check" '$podman run --name box-h -d $net --health-cmd "test -e /well" $box sleep 1000 && ! $podman healthcheck run box-h && $podman exec box-h touch /well && $podman healthcheck run box-h'
    ok "$1: a program in a running container, then all away" '$podman exec -d box-h touch /made && eventually $podman exec box-h test -e /made && $podman rm -f -t 0 box-h'
    ok "$1: play kube" '$podman play kube "$work/pod.yaml" && eventually sh -c "$podman logs shop-front | grep -qx \"front of x\""'
    ok "$1: its containers share the pod" 'front=$($podman exec shop-front readlink /proc/self/ns/ipc) && [ "$front" = "$($podman exec shop-back readlink /proc/self/ns/ipc)" ] && [ "$front" != "$(readlink /proc/self/ns/ipc)" ]'
    ok "$1: play kube down" '$podman play kube --down "$work/pod.yaml"; $podman pod rm -f -a -t 0'
    ok "$1: buildah bud" '$buildah bud --isolation oci --runtime $RRUN --network host --tag localhost/made "$work/context"'
    prints "$1: what it made runs" "made by guest" '$podman run --rm $net localhost/made cat /what | paste -sd " "'
    ok "$1: init" '! command -v catatonit || $podman run --rm --init $net $box true'
    prints "$1: nothing is left" "" '$podman ps -aq; ls $runtime_state 2>/dev/null || :'
}

# As root.
podman="podman --root $work/root --runroot /run/containers --tmpdir /run/libpod --runtime $RRUN --cgroup-manager cgroupfs"
buildah="buildah --root $work/root --runroot /run/containers"
net=--network=none limits="--cgroup-parent /$group --memory 32m --pids-limit 50 --cpus 0.5" runtime_state=/run/${RRUN##*/}
common root
pid=$($podman inspect --format '{{.State.Pid}}' box-a)
prints "root: memory limit" "33554432" 'limit "$pid" memory memory.limit_in_bytes memory.max'
prints "root: pids limit" "50" 'limit "$pid" pids pids.max pids.max'
ok "root: pause" '$podman pause box-a'
prints "root: status paused" "paused" '$podman inspect --format "{{.State.Status}}" box-a'
ok "root: unpause" '$podman unpause box-a'
counts() { $podman exec "$1" cat /count; }
beyond() { [ "$(counts "$1")" -gt "$2" ]; }
if reason=$(no_criu); then
    skip "root: checkpoint" "$reason"
else
    ok "root: run a program that counts" '$podman run --name box-c -d $net $limits $box sh -c "$COUNTS" && eventually beyond box-c 5'
    ok "root: checkpoint" 'counts box-c >"$work/before" && $podman container checkpoint box-c'
    prints "root: and it is no more" "exited true" '$podman inspect --format "{{.State.Status}} {{.State.Checkpointed}}" box-c'
    ok "root: restore" '$podman container restore box-c && eventually beyond box-c "$(cat "$work/before")"'
    prints "root: its limit again" "33554432" 'limit "$($podman inspect --format "{{.State.Pid}}" box-c)" memory memory.limit_in_bytes memory.max'
    ok "root: checkpoint into a file, and it goes on" 'counts box-c >"$work/before" && $podman container checkpoint --leave-running --export "$work/saved.tar.gz" box-c && eventually beyond box-c "$(cat "$work/before")"'
    ok "root: restore from the file, by another name" '$podman rm -f -t 0 box-c && $podman container restore --import "$work/saved.tar.gz" --name box-d && now=$(counts box-d) && [ "$now" -gt 5 ] && eventually beyond box-d "$now"'
    ok "root: remove it" '$podman rm -f -t 0 box-d'
fi
rest root

# Rootless: uid 1000 with subordinate ids, known in this mount namespace only.
user=rrun-it
for f in passwd group subuid subgid; do
    touch "/etc/$f"
    { grep -v '^[^:]*:[^:]*:1000:' "/etc/$f"; } >"$work/$f" || :
    chmod 644 "$work/$f"
done
echo "$user:x:1000:1000::$work/home:/bin/sh" >>"$work/passwd"
echo "$user:x:1000:" >>"$work/group"
echo "$user:200000:65536" >"$work/subuid"
echo "$user:200000:65536" >"$work/subgid"
for f in passwd group subuid subgid; do mount --bind "$work/$f" "/etc/$f"; done
mkdir -p /run/user/1000 "$work/home"
chown 1000:1000 /run/user/1000 "$work/home"
chmod 700 /run/user/1000
as_user="setpriv --reuid 1000 --regid 1000 --init-groups env -u DBUS_SESSION_BUS_ADDRESS HOME=$work/home XDG_RUNTIME_DIR=/run/user/1000 USER=$user"
podman="$as_user podman --runtime $RRUN --cgroup-manager cgroupfs --storage-driver vfs"
buildah="$as_user buildah --storage-driver vfs"
limits='' runtime_state=/run/user/1000/${RRUN##*/}
cd "$work/home" || exit 1
common user
rest user

cd / || exit 1
$podman system migrate
umount /etc/{containers,passwd,group,subuid,subgid} "$work/root/overlay" 2>/dev/null
nothing_left
finish
