#!/usr/bin/env bash
# The libraries behind kubectl exec, attach and port-forward, in every protocol version, on pods (streams/). SIZE is how many
# bytes the large transfers move each way, while the server's memory is watched.
NEEDS="crictl streams"
. "$(dirname "$0")/cri-lib.sh"

start_registry
start_server

images=registry.k8s.io/e2e-test-images
printf '{"metadata": {"name": "pod", "namespace": "streams", "uid": "rrun-it"}, "log_directory": "%s", "linux": {}}\n' "$work/logs" >"$work/pod.json"
printf '{"metadata": {"name": "host", "namespace": "streams", "uid": "rrun-it"}, "linux": {"security_context": {"namespace_options": {"network": 2}}}}\n' >"$work/host.json"
printf '{"metadata": {"name": "web"}, "image": {"image": "%s"}, "log_path": "web.log", "linux": {}}\n' $images/nginx:1.14-2 >"$work/web.json"
printf '{"metadata": {"name": "cat"}, "image": {"image": "%s"}, "command": ["cat"], "stdin": true, "log_path": "cat.log", "linux": {},
  "mounts": [{"host_path": "%s", "container_path": "%s"}]}\n' $images/busybox:1.29-2 "$TMPDIR" "$TMPDIR" >"$work/cat.json"
{
    crictl pull $images/nginx:1.14-2 && crictl pull $images/busybox:1.29-2 && pod=$(crictl runp "$work/pod.json") &&
        host=$(crictl runp "$work/host.json") &&
        web=$(crictl create "$pod" "$work/web.json" "$work/pod.json") && crictl start "$web" &&
        cat=$(crictl create "$pod" "$work/cat.json" "$work/pod.json") && crictl start "$cat"
} >"$work/output" 2>&1 || { fail "pods" "$work/output"; finish; exit; }
eventually grep -q serving "$work/logs/web.log"

"$CLIENT_streams" -size "${SIZE:-200000000}" ${RUN:+-run "$RUN"} -cri "$endpoint" -process "$server" -container "$cat" -pod "$host" -web "$pod:80" \
    2>"$work/streams.err" | tee "$work/streams.txt"
status=${PIPESTATUS[0]}
passed=$(grep -c ^PASS "$work/streams.txt") failed=$(grep -c ^FAIL "$work/streams.txt")
[ "$status" = 0 ] || [ "$failed" != 0 ] || fail "streams: status $status" "$work/streams.err"
echo "the monitors' memory: at most$(for pid in $(pgrep -f "rrun-monitor serve"); do sed -n 's/^VmHWM:[[:space:]]*/ /p' "/proc/$pid/status"; done | paste -sd,)"
lines=$(grep -c "channel.k8s.io$" "$work/logs/cat.log")
[ -n "${RUN:-}" ] || prints "each line typed is in the log, once" 9 "echo $lines"
kill "$server" && wait "$server" 2>/dev/null
finish
