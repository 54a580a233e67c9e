#!/usr/bin/env bash
# checkpoint: of a container by crictl, read by checkpointctl, restored; and archives that go between rrun-cri and containerd.
NEEDS="crictl checkpointctl criu"
[ "${SERVER:-rrun-cri}" = containerd ] || NEEDS="$NEEDS containerd runc"
. "$(dirname "$0")/cri-lib.sh"

place_criu >"$work/output" || { skip "checkpoints" "$(<"$work/output")"; finish; exit; }

start_registry
start_server

# By the registry's own name: containerd pulls a checkpoint's base image past all mirrors.
busybox=$registry/e2e-test-images/busybox:1.29-2
# pod_file NAME: the settings of a pod; pods of one name are never there together
pod_file() {
    printf '{"metadata": {"name": "%s", "namespace": "hand", "uid": "%s", "attempt": 0}, "hostname": "%s", "log_directory": "%s/logs-%s",
     "linux": {"cgroup_parent": "/hand"}}\n' "$1" "$1" "$1" "$work" "$1" >"$work/$1.json"
}
# container_file NAME IMAGE: the counter's settings, with that image
container_file() {
    printf '{"metadata": {"name": "counter"}, "image": {"image": "%s"}, "log_path": "counter.log", "linux": {},
     "command": ["sh", "-c", "echo kept >/kept; rm /etc/group; i=0; while :; do i=$((i+1)); echo $i; echo $i >/new; mv /new /count; sleep 0.1; done"]}\n' "$2" >"$work/$1.json"
}
# make POD CONTAINER: runs the pod with the container, and prints their ids
make() {
    local pod id
    pod_file "$1" && pod=$(crictl runp "$work/$1.json") && id=$(crictl create "$pod" "$work/$2.json" "$work/$1.json") &&
        crictl start "$id" >/dev/null && echo "$pod $id"
}
count() { crictl exec -s "$1" cat /count; }
# grows ID LEAST: its count is higher than that
grows() { eventually bash -c '[ "$(count '"$1"')" -gt '"$2"' ]'; }
export -f count crictl
export CLIENT_crictl work
# restored NAME ARCHIVE LEAST: a pod of that name with a container from the archive, which counts on
restored() {
    local pod id
    container_file "from-$1" "$2"
    if read -r pod id < <(make "$1" "from-$1" 2>"$work/output") && [ -n "$id" ]; then
        pass "$1: create and start from the archive"
        ok "$1: it counts on" "grows $id $3"
        prints "$1: its files are there" "kept" "crictl exec -s $id sh -c 'cat /kept; ! ls /etc/group 2>/dev/null'"
        ok "$1: its log has the old lines and new ones" "grep -q ' 1\$' $work/logs-$1/counter.log && eventually grep -q ' $(($3 + 5))\$' $work/logs-$1/counter.log"
        ok "$1: stop and remove" "crictl stop -t 1 $id && crictl rm $id && crictl stopp $pod && crictl rmp $pod"
    else
        fail "$1: create and start from the archive" "$work/output"
        grep -h Error "$work"/server-root/*/*/*/restore.log "$work"/server-root/*/restore.log 2>/dev/null | tail -n 3
    fi
}
# swap SERVER: the other server, in the same place
swap() {
    kill "$server" && wait "$server" 2>/dev/null
    SERVER=$1
    mv "$work/server-root" "$work/root-of-other" && mv "$work/server-state" "$work/state-of-other"
    [ ! -e "$work/root-of-next" ] || mv "$work/root-of-next" "$work/server-root"
    "start_${SERVER//-/_}"
    eventually crictl version || { fail "$SERVER starts" "$work/server.log"; finish; exit; }
}
export -f grows eventually

ok "pull" "crictl pull $busybox"
container_file counter $busybox
read -r pod id < <(make first counter 2>"$work/output") || { fail "create and start" "$work/output"; finish; exit; }
grows "$id" 5
ok "crictl checkpoint" "crictl checkpoint --export=$work/first.tar $id"
saved=$(count "$id")
ok "the container goes on" "grows $id $saved"
prints "the archive is root's alone" "600" "stat -c %a $work/first.tar"
ok "checkpointctl show" "$CLIENT_checkpointctl show $work/first.tar | grep -q counter"
ok "checkpointctl inspect" "$CLIENT_checkpointctl inspect --all $work/first.tar | tee $work/inspected | grep -q 'Process tree' && grep -q $busybox $work/inspected"
ok "remove" "crictl stop -t 1 $id && crictl rm $id && crictl stopp $pod && crictl rmp $pod"
restored "$SERVER" "$work/first.tar" 5

if [ "$SERVER" != containerd ]; then
    swap containerd
    ok "containerd: pull" "crictl pull $busybox"
    if [ -d /sys/fs/cgroup/unified ]; then
        skip "containerd-from-rrun-cri" "runc shows a container no unified hierarchy beside v1's, and cannot restore one"
    else
        restored containerd-from-rrun-cri "$work/first.tar" 5
    fi
    read -r pod id < <(make second counter 2>"$work/output") || fail "containerd: create and start" "$work/output"
    grows "$id" 5
    ok "containerd: crictl checkpoint" "crictl checkpoint --export=$work/second.tar $id"
    crictl rmp -fa >/dev/null 2>&1
    mv "$work/root-of-other" "$work/root-of-next" && rm -rf "$work/state-of-other"
    swap rrun-cri
    restored rrun-cri-from-containerd "$work/second.tar" 5
fi
kill "$server"
wait "$server" 2>/dev/null
finish
