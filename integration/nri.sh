#!/usr/bin/env bash
# nri: plugins of the Node Resource Interface, by the library that plugins use (nri-plugin/), on pods driven by crictl:
# one that the server starts, others that connect, that disagree, hang, die, and what is no plugin at all.
NEEDS="crictl nri-plugin"
. "$(dirname "$0")/cri-lib.sh"

[ "${CGROUP_DRIVER:-}" = systemd ] && parent=/nri.slice || parent=/nri
busybox=registry.k8s.io/e2e-test-images/busybox:1.29-2
printf '{"metadata": {"name": "pod", "namespace": "nri", "uid": "rrun-it", "attempt": 0}, "log_directory": "%s", "linux": {"cgroup_parent": "%s"}}\n' \
    "$work/logs" $parent >"$work/pod.json"
for name in one two late hung torn refused limited; do
    printf '{"metadata": {"name": "%s"}, "image": {"image": "%s"}, "command": ["sleep", "1000"], "envs": [{"key": "OLD", "value": "old"}, {"key": "GONE", "value": "x"}],
        "linux": {"resources": {"memory_limit_in_bytes": 33554432}}}\n' $name $busybox >"$work/$name.json"
done

# What the installed plugin wants of every container.
mkdir -p "$work/nri" "$work/nri-config" "$work/given"
echo given >"$work/given/file"
printf '#!/bin/sh\ncat >%s/hooked\n' "$work" >"$work/hook" && chmod 755 "$work/hook"
cp "$CLIENT_nri_plugin" "$work/nri/10-installed"
cat >"$work/nri-config/installed.conf" <<C
{"log": "$work/installed.log", "adjust": {
  "annotations": {"nri.test/mark": "yes"},
  "env": [{"key": "FROM_NRI", "value": "set"}, {"key": "OLD", "value": "new"}, {"key": "-GONE"}],
  "mounts": [{"destination": "/given", "type": "bind", "source": "$work/given", "options": ["rbind", "ro", "rprivate"]}],
  "hooks": {"createRuntime": [{"path": "$work/hook", "args": ["hook"]}]},
  "rlimits": [{"type": "RLIMIT_NOFILE", "hard": "4321", "soft": "1234"}],
  "linux": {
    "devices": [{"path": "/dev/nri-null", "type": "c", "major": "1", "minor": "3", "fileMode": {"value": 438}}],
    "resources": {"memory": {"limit": {"value": "50331648"}}, "cpu": {"shares": {"value": "512"}}},
    "oomScoreAdj": {"value": "123"}}},
 "stop": [], "update": [{"linux": {"resources": {"memory": {"limit": {"value": "71303168"}}}}}]}
C
# Programs of that folder that are no plugins.
printf '#!/bin/sh\necho garbage >&3\nsleep 1000\n' >"$work/nri/20-garbage"
printf '#!/bin/sh\nexit 1\n' >"$work/nri/30-dies"
printf '#!/bin/sh\n' >"$work/nri/no-index"
chmod 755 "$work"/nri/*

# plugin INDEX NAME CONFIG: one that connects, in the background; its pid is in $plugin
plugin() {
    "$CLIENT_nri_plugin" -idx "$1" -name "$2" -socket "$work/nri.sock" -config "$3" >"$work/$2.out" 2>&1 &
    plugin=$!
    eventually grep -q Synchronize "$work/$2.log" || { fail "plugin $2 connects" "$work/$2.out"; return 1; }
}
ended() { kill "$1" 2>/dev/null; wait "$1" 2>/dev/null; }
# make NAME: creates and starts a container, and prints its id
make() { local id; id=$(crictl create "$pod" "$work/$1.json" "$work/pod.json") && crictl start "$id" >/dev/null && echo "$id"; }
inside() { crictl exec -s "$1" sh -c "$2"; }
field() { crictl inspect -o go-template --template "{{$2}}" "$1"; }
memory() { limit "$(field "$1" .info.pid)" memory memory.limit_in_bytes memory.max; }

start_registry
start_server
crictl pull $busybox >/dev/null
ok "the installed plugin has its configuration" 'grep -qx "Configure rrun-cri" $work/installed.log'
prints "the socket is root's alone" "600 0" 'stat -c "%a %u" $work/nri.sock'
ok "what is no plugin is said" 'grep -q "20-garbage\|no NRI plugin" $work/server.log && grep -q "hung up before it registered" $work/server.log && grep -q "no-index.*not two digits" $work/server.log'

pod=$(crictl runp "$work/pod.json" 2>"$work/output") || { fail "runp" "$work/output"; finish; exit; }
one=$(make one 2>"$work/output") || { fail "create and start" "$work/output"; finish; exit; }
pass "create and start"
prints "variables" "set new" 'inside $one "echo \$FROM_NRI \$OLD\$GONE"'
prints "a mount" "given" 'inside $one "cat /given/file"'
exits "a mount, read-only" 1 "Read-only" 'inside $one "echo x >/given/file"'
prints "a device" "0 crw-rw-rw-" 'inside $one "echo x >/dev/nri-null; wc -c </dev/nri-null; ls -l /dev/nri-null" | cut -d " " -f 1 | xargs'
prints "an rlimit" "1234 4321" 'inside $one "echo \$(ulimit -Sn) \$(ulimit -Hn)"'
prints "the OOM score" "123" 'cat /proc/$(field $one .info.pid)/oom_score_adj'
prints "an annotation" "yes" 'field $one "index .info.runtimeSpec.annotations \"nri.test/mark\""'
ok "a hook" 'grep -q $one $work/hooked'
prints "the memory limit" "50331648" 'memory $one'
prints "the memory limit in the status" "50331648" 'field $one .status.resources.linux.memoryLimitInBytes'
ok "an update" 'crictl update --memory 67108864 $one'
prints "an update that the plugin changes" "71303168 memory 67108864" 'echo $(memory $one) $(grep ^memory $work/installed.log)'

plugin 20 late "{\"log\": \"$work/late.log\", \"unsolicited\": [{\"containerId\": \"$one\", \"linux\": {\"resources\": {\"memory\": {\"limit\": {\"value\": \"83886080\"}}}}}, {\"containerId\": \"none\", \"linux\": {\"resources\": {}}}]}"
prints "one that comes late is told what there is" "Synchronize one pod" 'grep Synchronize $work/late.log'
kill -USR1 $plugin
ok "it asks for updates by itself" 'eventually grep -q "UpdateContainers failed 1 <nil>" $work/late.log'
prints "and gets them" "83886080" 'memory $one'
two=$(make two)
ok "it hears of a new container" 'grep -qx "CreateContainer pod two" $work/late.log'
ok "it sees who set what" "grep -q 'FROM_NRI is of \"10-installed\"' \$work/late.log"
ended $plugin
ok "it dies, and pods go on" 'crictl rm -f $two'

plugin 05 other "{\"log\": \"$work/other.log\", \"only\": \"torn\", \"adjust\": {\"env\": [{\"key\": \"FROM_NRI\", \"value\": \"mine\"}]}}"
exits "two that want the same" 1 'plugins 05-other and 10-installed both set Env \"FROM_NRI\"' 'make torn'
ended $plugin
plugin 30 taking "{\"log\": \"$work/taking.log\", \"only\": \"torn\", \"adjust\": {\"env\": [{\"key\": \"-FROM_NRI\"}, {\"key\": \"FROM_NRI\", \"value\": \"mine\"}]}}"
ok "the later one may take the place" 'torn=$(make torn) && [ "$(inside $torn "echo \$FROM_NRI")" = mine ] && crictl rm -f $torn'
ended $plugin
plugin 40 strict "{\"log\": \"$work/strict.log\", \"only\": \"refused\", \"reject\": \"not here\"}"
exits "a validator rejects" 1 "not here" 'make refused'
ended $plugin
plugin 50 failing "{\"log\": \"$work/failing.log\", \"only\": \"refused\", \"fail\": [\"CreateContainer\"]}"
exits "a plugin fails a request" 1 "50-failing: CreateContainer: told to fail" 'make refused'
ended $plugin
prints "and nothing of it is left" "one" 'crictl ps -a -o json | grep -o "\"name\": *\"[a-z]*\"" | cut -d \" -f 4 | sort -u | paste -sd " "'

plugin 60 hanging "{\"log\": \"$work/hanging.log\", \"only\": \"hung\", \"hang\": [\"StartContainer\"]}"
ok "one that hangs is left behind" 'hung=$(make hung) && grep -q "60-hanging.*no answer within 2s: the plugin is left behind\|StartContainer.*no answer within 2s.*left behind.*60-hanging" $work/server.log && crictl rm -f $hung'
ok "its connection is closed" '! kill -0 $plugin 2>/dev/null || eventually bash -c "! kill -0 $plugin"'
plugin 60 dropped "{\"log\": \"$work/dropped.log\"}"
kill -STOP $plugin
ok "so is one that stands still" 'id=$(make late) && crictl rm -f $id && grep -q "60-dropped" $work/server.log'
kill -KILL $plugin
ok "what is no plugin" 'head -c 1000000 /dev/urandom | busybox nc -w 1 local:$work/nri.sock 2>/dev/null || python3 -c "
import socket, os
s = socket.socket(socket.AF_UNIX); s.connect(os.environ[\"work\"] + \"/nri.sock\")
s.settimeout(10)
try:
    s.sendall(b\"GET / HTTP/1.1\\r\\n\\r\\n\"); assert s.recv(1) == b\"\"
except ConnectionError:
    pass
"'

limited=$(make limited)
ok "stop" 'crictl stop --timeout 0 $limited && crictl rm $limited && crictl rm -f $one && crictl stopp $pod && crictl rmp $pod'
prints "all of a life, in order" "RunPodSandbox CreateContainer PostCreateContainer StartContainer PostStartContainer UpdateContainer PostUpdateContainer StopContainer RemoveContainer StopPodSandbox RemovePodSandbox" \
    'grep -E " pod (one)?$" $work/installed.log | cut -d " " -f 1 | paste -sd " "'
kill "$server" && wait "$server" 2>/dev/null
ok "installed plugins end with the server" 'eventually bash -c "! pgrep -f $work/nri/[1]0-installed"'
finish
