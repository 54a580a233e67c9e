#!/usr/bin/env bash
# containerd: its shim and `ctr` run containers on rrun.
OWN_CGROUPS=1 NEEDS_CRIU=1
. "$(dirname "$0")/lib.sh"
PATH=$CRIU$PATH
own_run
engine_files='^/run/(containerd/|criu.kdat)' engine_cgroups='/rrun-it'

cat >"$work/config.toml" <<C
version = 2
root = "$work/root"
state = "$work/state"
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/containerd.sock"
C
containerd --config "$work/config.toml" >"$work/log" 2>&1 &
daemon=$!
CONTAINERD_ADDRESS=$work/containerd.sock CONTAINERD_SNAPSHOTTER=${SNAPSHOTTER:-overlayfs}
group=rrun-it
eventually ctr version || { fail "containerd starts" "$work/log"; finish; exit; }
image "$work/image.tar" || exit 1
ctr events >"$work/events" 2>/dev/null &
events=$!
ok "import an image" 'ctr image import --all-platforms "$work/image.tar"'

# run ID OPTION... -- COMMAND...
run() {
    local id=$1 options=()
    shift
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    ctr run --runc-binary "$RRUN" --runc-root "$work/runc" --cgroup "/$group/$id" "${options[@]}" localhost/busybox:1 "$id" "$@"
}
status() { ctr task ls | awk -v id="$1" '$1 == id { print $3 }'; }
is() { [ "$(status "$1")" = "$2" ]; }

prints "run prints" "hello" 'run a --rm -- echo hello'
exits "run passes the exit status on" 7 "" 'run b --rm -- sh -c "exit 7"'
prints "process 1, own root" "1 /bin" 'run d --rm -- sh -c "echo \$\$ \$(ls -d /b*n)"'
prints "folder, environment" "/tmp x" 'run e --rm --cwd /tmp --env A=x -- sh -c "echo \$PWD \$A"'
exits "read-only root" 1 "Read-only file system" 'run f --rm --read-only -- touch /x'
echo from-host >"$work/shared"
prints "bind mount" "from-host" 'run g --rm --mount type=bind,src=$work/shared,dst=/shared,options=rbind:ro -- cat /shared'
prints "seccomp" "2" 'run h --rm --seccomp -- sed -n "s/^Seccomp:[[:space:]]*//p" /proc/self/status'
exits "missing executable" 1 "executable file not found in \$PATH" 'run i --rm -- no-such-program'
ctr container rm i >/dev/null 2>&1
prints "terminal and its size" "33 99" 'terminal "" "run j --rm --tty -- sh -c \"sleep 1; stty size\""'

ok "run detached" 'run k -d --memory-limit 33554432 -- sleep 1000'
prints "status running" "RUNNING" 'status k'
pid=$(ctr task ls | awk '$1 == "k" { print $2 }')
prints "memory limit" "33554432" 'limit "${pid:-none}" memory memory.limit_in_bytes memory.max'
prints "exec" "inside" 'ctr task exec --exec-id 1 k echo inside'
exits "exec passes the exit status on" 5 "" 'ctr task exec --exec-id 2 k sh -c "exit 5"'
prints "exec on a terminal" "33 99" 'terminal "" "ctr task exec --tty --exec-id 3 k sh -c \"sleep 1; stty size\""'
exits "exec of a missing program" 1 "executable file not found in \$PATH" 'ctr task exec --exec-id 4 k no-such-program'
ok "ps" "ctr task ps k | grep -qw ${pid:-none}"
ok "metrics" 'ctr task metrics k | grep -q memory'
ok "pause" 'ctr task pause k'
ok "status paused" 'eventually is k PAUSED'
ok "resume" 'ctr task resume k'
ok "status running again" 'eventually is k RUNNING'
ok "kill" 'ctr task kill --signal KILL k'
ok "status stopped" 'eventually is k STOPPED'
exits "delete tells how it ended" 0 "exit code 137" 'ctr task delete k'
ok "container removed" 'ctr container rm k'

told() { for topic in create start exec-added exec-started paused resumed exit delete; do grep -q "/tasks/$topic .*\"k\"" "$work/events" || { echo "no $topic"; return 1; }; done; }
ok "the events of its life" 'eventually told || told'
# counts ID: the number in its file
counts() { ctr task exec --exec-id "$RANDOM" "$1" cat /count; }
beyond() { [ "$(counts "$1")" -gt "$2" ]; }
if reason=$(no_criu); then
    skip "checkpoint" "$reason"
else
    ok "run a program that counts" 'run m -d -- sh -c "$COUNTS" && eventually beyond m 5'
    ok "checkpoint, and it goes on" 'before=$(counts m) && ctr container checkpoint --task --image --rw m localhost/saved:1 && eventually beyond m "$before"'
    ok "kill it" 'ctr task kill --signal KILL m && eventually is m STOPPED && ctr task delete m; ctr container rm m'
    ok "restore" 'ctr container restore --live --rw m localhost/saved:1 && eventually is m RUNNING'
    ok "it counts on" 'now=$(counts m) && [ "$now" -gt 5 ] && eventually beyond m "$now"'
    ok "checkpoint into a folder, which ends it" 'ctr task checkpoint --exit --image-path "$work/saved" m && eventually is m STOPPED && ls "$work/saved" | grep -q "^core-"'
    ok "remove it" 'ctr task delete m; ctr container rm m'
fi
ok "run detached, once more" 'run l -d -- sleep 1000'
kill -9 "$daemon"
wait "$daemon" 2>/dev/null
containerd --config "$work/config.toml" >>"$work/log" 2>&1 &
daemon=$!
ok "containerd killed and started again" 'eventually ctr version'
prints "it finds the container" "RUNNING" 'status l'
prints "exec in it" "inside" 'ctr task exec --exec-id 1 l echo inside'
ok "and removes it" 'ctr task rm -f l && ctr container rm l'
prints "no container is left" "" 'ls "$work/runc/default" 2>/dev/null; ctr task ls -q; ctr container ls -q'
kill "$daemon"
wait "$events" "$daemon" 2>/dev/null
nothing_left
finish
