#!/usr/bin/env bash
# crictl: a pod driven by hand, from pull to removal.
NEEDS="crictl"
. "$(dirname "$0")/cri-lib.sh"

start_registry
start_server

busybox=registry.k8s.io/e2e-test-images/busybox:1.29-2
nginx=registry.k8s.io/e2e-test-images/nginx:1.14-2
[ "${CGROUP_DRIVER:-}" = systemd ] && parent=/hand.slice || parent=/hand
cat >"$work/pod.json" <<C
{"metadata": {"name": "pod", "namespace": "hand", "uid": "rrun-it", "attempt": 0}, "hostname": "by-hand",
 "log_directory": "$work/logs", "labels": {"app": "hand"}, "port_mappings": [{"container_port": 80, "host_port": 12080}],
 "dns_config": {"servers": ["10.9.9.9"], "searches": ["hand.test"]}, "linux": {"cgroup_parent": "$parent"}}
C
# container NAME IMAGE MORE: the file of a container's settings, MORE being further fields
container() { printf '{"metadata": {"name": "%s"}, "image": {"image": "%s"}, "log_path": "%s.log", %s}\n' "$1" "$2" "$1" "$3" >"$work/$1.json"; }
container loop $busybox '"command": ["sh", "-c", "echo to-out; echo to-err >&2; trap \"echo bye; exit 3\" TERM; while :; do sleep 1 & wait; done"],
  "envs": [{"key": "A", "value": "x"}], "working_dir": "/tmp", "mounts": [{"host_path": "'"$work"'/shared", "container_path": "/shared", "readonly": true}],
  "linux": {"resources": {"memory_limit_in_bytes": 33554432, "cpu_quota": 50000, "cpu_period": 100000}}'
container web $nginx '"linux": {}'
container cat $busybox '"command": ["cat"], "stdin": true, "stdin_once": true, "linux": {}'
container tty $busybox '"command": ["sh", "-c", "while sleep 1; do echo waiting; done & read line; stty size; exit 4"], "stdin": true, "tty": true, "linux": {}'
container wrong $busybox '"command": ["no-such-program"], "linux": {}'
mkdir "$work/shared" && echo from-host >"$work/shared/file"

# make NAME: creates and starts a container, and prints its id
make() { local id; id=$(crictl create "$pod" "$work/$1.json" "$work/pod.json") && crictl start "$id" >/dev/null && echo "$id"; }
state() { crictl inspect -o go-template --template '{{.status.state}}' "$1"; }
is() { [ "$(state "$1")" = "CONTAINER_$2" ]; }
field() { crictl inspect -o go-template --template "{{$2}}" "$1"; } # field CONTAINER TEMPLATE
pod_field() { crictl inspectp -o go-template --template "{{$2}}" "$1"; }

ok "version" 'crictl version | grep -q "RuntimeApiVersion: *v1"'
prints "info: ready, network ready" "true true " 'crictl info -o go-template --template "{{range .status.conditions}}{{if or (eq .type \"RuntimeReady\") (eq .type \"NetworkReady\")}}{{.status}} {{end}}{{end}}"'
ok "runtime-config" 'crictl runtime-config | grep -q "cgroup driver"'
ok "pull" "crictl pull $busybox && crictl pull $nginx"
ok "images" 'crictl images | grep -q "e2e-test-images/busybox *1.29-2"'
ok "inspecti" "crictl inspecti $busybox | grep -q repoDigests"
ok "imagefsinfo" 'crictl imagefsinfo | grep -q usedBytes'

pod=$(crictl runp "$work/pod.json" 2>"$work/output") || { fail "runp" "$work/output"; finish; exit; }
pass "runp"
prints "pods" "Ready hand" 'crictl pods --no-trunc | awk -v id=$pod "\$1 == id { for (i = 2; i <= NF; i++) if (\$i == \"Ready\") print \$i, \$(i + 2) }"'
prints "inspectp: state" "SANDBOX_READY" 'pod_field $pod .status.state'
address=$(pod_field "$pod" .status.network.ip)
ok "inspectp: address" '[[ $address == 10.89.* ]]'

loop=$(make loop 2>"$work/output") || { fail "create and start" "$work/output"; finish; exit; }
pass "create and start"
prints "ps" "loop" 'crictl ps --no-trunc | awk -v id=$loop "\$1 == id { for (i = 2; i <= NF; i++) if (\$i == \"Running\") print \$(i + 1) }"'
prints "logs, stdout" "to-out" 'eventually grep -q to-err $work/logs/loop.log; crictl logs --stream stdout $loop'
prints "logs, stderr" "to-err" 'crictl logs --stream stderr $loop 2>&1'
prints "exec -s" "by-hand x /tmp from-host" 'crictl exec -s $loop sh -c "echo \$(hostname) \$A \$PWD \$(cat /shared/file)"'
exits "exec -s, exit status" 1 "7" 'crictl exec -s $loop sh -c "exit 7"'
exits "exec -s, timeout" 1 "DeadlineExceeded" 'crictl exec -s --timeout 1 $loop sleep 100'
exits "exec -s, no such program" 1 "no-such-program" 'crictl exec -s $loop no-such-program'
prints "resolv.conf" "search hand.test nameserver 10.9.9.9" 'crictl exec -s $loop sh -c "echo \$(cat /etc/resolv.conf)"'
for transport in spdy websocket; do
    prints "exec, $transport" "inside" 'crictl exec -r $transport $loop echo inside'
    exits "exec, $transport, exit status" 1 "7" 'crictl exec -r $transport $loop sh -c "exit 7"'
    prints "exec, $transport, stdin" "typed" 'echo typed | crictl exec -i -r $transport $loop cat'
    prints "exec, $transport, terminal" "33 99" 'terminal "" "crictl exec -it -r $transport $loop sh -c \"sleep 1; stty size\""'
done
pid=$(field "$loop" .info.pid)
ok "inspect: info.pid is the process" 'grep -q to-err /proc/$pid/cmdline'
ok "inspect: info.runtimeSpec" '[ "$(field "$loop" .info.runtimeSpec.process.cwd)" = /tmp ]'
prints "memory limit" "33554432" 'limit "$pid" memory memory.limit_in_bytes memory.max'
ok "update" 'crictl update --memory 67108864 $loop'
prints "memory limit after update" "67108864" 'limit "$pid" memory memory.limit_in_bytes memory.max'
prints "status after update" "67108864" 'field "$loop" .status.resources.linux.memoryLimitInBytes'
ok "stats" 'crictl stats -o json $loop | grep -q workingSetBytes'
ok "statsp" 'crictl statsp -o json $pod | grep -q rxBytes'
ok "metricdescs" 'crictl metricdescs | grep -q container_memory_usage_bytes'
ok "logs --reopen" 'mv $work/logs/loop.log $work/logs/old.log && crictl logs --reopen $loop && [ -e $work/logs/loop.log ]'

web=$(make web)
ok "the pod's address serves" 'eventually busybox wget -q -O $work/page http://$address && grep -q Welcome $work/page'
[ -z "$HOST_PORTS" ] && skip "its host port serves" "the kernel has no multiport match" || ok "its host port serves" 'busybox wget -q -O $work/page http://127.0.0.1:12080 && grep -q Welcome $work/page'
for transport in spdy websocket; do
    crictl port-forward -r $transport "$pod" 12180:80 >"$work/forward" 2>&1 &
    forward=$!
    ok "port-forward, $transport" 'eventually busybox wget -q -O $work/page http://127.0.0.1:12180 && grep -q Welcome $work/page || { cat $work/forward; false; }'
    kill $forward 2>/dev/null && wait $forward 2>/dev/null
done

for transport in spdy websocket; do
    cat=$(make cat)
    prints "attach, $transport" "echoed" 'echo echoed | crictl attach -i -r $transport $cat'
    ok "attach, $transport: stdinOnce ends it" 'eventually is $cat EXITED; crictl rm $cat || { crictl rm -f $cat; false; }'
    tty=$(make tty)
    ok "attach, $transport, terminal" 'terminal "go\n" "crictl attach -it -r $transport $tty" | grep "44 99"'
    ok "attach, $transport, terminal: how it ended" 'eventually is $tty EXITED && [ "$(field $tty .status.exitCode)" = 4 ]; crictl rm -f $tty'
done

ok "create what cannot start" 'wrong=$(crictl create "$pod" "$work/wrong.json" "$work/pod.json") && echo $wrong >$work/wrong'
wrong=$(<"$work/wrong")
exits "start says why" 1 "no-such-program" 'crictl start $wrong'
prints "its status too" "CONTAINER_EXITED 128 StartError" 'field $wrong ".status.state}} {{.status.exitCode}} {{.status.reason"'

ok "stop" 'crictl stop --timeout 10 $loop'
prints "status exited" "CONTAINER_EXITED 3 Error" 'field $loop ".status.state}} {{.status.exitCode}} {{.status.reason"'
ok "the log goes on after a reopen" 'grep -q "stdout F bye" $work/logs/loop.log'
ok "stop again" 'crictl stop $loop'
ok "rm" 'crictl rm $loop'
ok "rm of a running container" '! crictl rm $web && crictl rm --force $web'
exits "inspect of what is gone" 1 "NotFound" 'crictl inspect $loop'
ok "events" 'timeout 2 "$CLIENT_crictl" --config $work/crictl.yaml events >$work/events & sleep 1; crictl rm $wrong; wait; grep -q CONTAINER_DELETED $work/events'
ok "stopp" 'crictl stopp $pod && crictl stopp $pod'
prints "inspectp: not ready" "SANDBOX_NOTREADY" 'pod_field $pod .status.state'
ok "rmp" 'crictl rmp $pod'
ok "rmi" "crictl rmi $busybox $nginx"
prints "nothing is left" "" 'crictl pods -q; crictl ps -aq; ls /run/netns; ls $work/addresses/rrun-it | grep "^10"; find /sys/fs/cgroup -path "*$parent/*" -type d; ip -o link | grep veth; true'
kill "$server" && wait "$server" 2>/dev/null
finish
