#!/usr/bin/env bash
# The libraries behind kubectl exec, attach and port-forward, in every protocol version (streams/main.go).
NEEDS="crictl streams"
. "$(dirname "$0")/cri-lib.sh"

start_registry
start_server

images=registry.k8s.io/e2e-test-images
printf '{"metadata": {"name": "pod", "namespace": "streams", "uid": "rrun-it"}, "log_directory": "%s", "linux": {}}\n' "$work/logs" >"$work/pod.json"
printf '{"metadata": {"name": "web"}, "image": {"image": "%s"}, "log_path": "web.log", "linux": {}}\n' $images/nginx:1.14-2 >"$work/web.json"
printf '{"metadata": {"name": "cat"}, "image": {"image": "%s"}, "command": ["cat"], "stdin": true, "log_path": "cat.log", "linux": {}}\n' \
    $images/busybox:1.29-2 >"$work/cat.json"
{
    crictl pull $images/nginx:1.14-2 && crictl pull $images/busybox:1.29-2 && pod=$(crictl runp "$work/pod.json") &&
        web=$(crictl create "$pod" "$work/web.json" "$work/pod.json") && crictl start "$web" &&
        cat=$(crictl create "$pod" "$work/cat.json" "$work/pod.json") && crictl start "$cat"
} >"$work/output" 2>&1 || { fail "a pod" "$work/output"; finish; exit; }
eventually grep -q serving "$work/logs/web.log"

timeout 600 "$CLIENT_streams" "$endpoint" "$cat" "$pod" 80 >"$work/streams.txt" 2>"$work/streams.err"
status=$?
cat "$work/streams.txt"
passed=$(grep -c ^PASS "$work/streams.txt") failed=$(grep -c ^FAIL "$work/streams.txt")
[ $status = 0 ] || [ "$failed" != 0 ] || fail "streams: status $status" "$work/streams.err"
lines=$(grep -c "channel.k8s.io$" "$work/logs/cat.log")
prints "each line typed is in the log, once" 9 "echo $lines"
kill "$server" && wait "$server" 2>/dev/null
finish
