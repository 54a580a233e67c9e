#!/usr/bin/env bash
# The OpenTelemetry Collector on a node: it reads a container's log as it does from containerd, while much is written and
# the log is rotated ten times the way kubelet does it, and is sent the traces that begin at a CRI client.
NEEDS="crictl otelcol"
. "$(dirname "$0")/cri-lib.sh"

ROTATIONS=${ROTATIONS:-10} SIZE=${SIZE:-2000000}
TRACES=127.0.0.1:4317
logs=$work/logs
busybox=registry.k8s.io/e2e-test-images/busybox:1.29-2

# A node's agent has these settings, but for the rotated names: with them in the list, what a container writes between
# kubelet's rename and the new file is never out of sight.
cat >"$work/otelcol.yaml" <<C
receivers:
  filelog:
    include: ["$logs/*.log*"]
    exclude: ["$logs/*.gz"]
    start_at: beginning
    include_file_path: true
    operators: [{type: container, add_metadata_from_filepath: false}]
  otlp: {protocols: {grpc: {endpoint: "$TRACES"}}}
exporters: {stdout: {}}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    logs: {receivers: [filelog], exporters: [stdout]}
    traces: {receivers: [otlp], exporters: [stdout]}
C
mkdir "$logs"
"$CLIENT_otelcol" --config "$work/otelcol.yaml" >"$work/collected" 2>"$work/otelcol.log" &
collector=$!
eventually bash -c ': </dev/tcp/${TRACES/://}' || { fail "the collector starts" "$work/otelcol.log"; finish; exit; }
start_registry
start_server
ok "pull" "crictl pull $busybox"

# 10,000 lines a second, some of them longer than a line of a log may be, and some on stderr.
cat >"$work/write.sh" <<'C'
n=0
until [ -e /stop ]; do
    awk -v n=$n 'BEGIN {
        for (pad = "x"; length(pad) < 50000; pad = pad pad) ;
        for (i = n; i < n + 500; i++)
            if (i % 500 == 499) print i, substr(pad, 1, 30000 + i % 20000)
            else if (i % 50 == 49) print i, "error" > "/dev/stderr"
            else print i, substr(pad, 1, i % 150)
    }'
    n=$((n + 500))
    sleep 0.05
done
echo "$n end"
C
printf '{"metadata": {"name": "pod", "namespace": "collector", "uid": "rrun-it"}, "log_directory": "%s", "linux": {}}\n' "$logs" >"$work/pod.json"
python3 - "$busybox" "$work/write.sh" >"$work/writer.json" <<'C'
import json, sys
print(json.dumps({"metadata": {"name": "writer"}, "image": {"image": sys.argv[1]}, "log_path": "0.log", "linux": {},
                  "command": ["sh", "-c", open(sys.argv[2]).read()]}))
C
traced() { crictl --enable-tracing --tracing-endpoint "$TRACES" --tracing-sampling-rate-per-million 1000000 "$@"; }
pod=$(traced runp "$work/pod.json" 2>"$work/output") || { fail "runp" "$work/output"; finish; exit; }
id=$(traced create "$pod" "$work/writer.json" "$work/pod.json") && crictl start "$id" >/dev/null

# rotate: as kubelet does, but for the age of what it compresses
rotate() {
    until [ "$(stat -c %s "$logs/0.log")" -gt "$SIZE" ]; do sleep 0.05; done
    for old in "$logs"/0.log.*; do
        case $old in *.gz | *\*) continue ;; esac
        gzip -c "$old" >"$old.gz" && rm "$old"
    done
    mv "$logs/0.log" "$logs/0.log.$(date +%Y%m%d-%H%M%S.%N)"
    crictl logs --reopen "$id"
}
for n in $(seq "$ROTATIONS"); do
    timeout 60 bash -c rotate >>"$work/output" 2>&1 || { fail "rotation $n" "$work/output"; break; }
done
prints "$ROTATIONS rotated logs" "$ROTATIONS" "ls $logs/0.log.* | wc -l"
crictl exec "$id" touch /stop
has_ended() { [ "$(crictl inspect -o go-template --template '{{.status.state}}' "$id")" = CONTAINER_EXITED ]; }
ok "the writer ends" "eventually has_ended"

# read: what the collector has got; the status says whether it is every line, once, whole
cat >"$work/read.py" <<'C'
import json, sys

lines, files, streams = {}, set(), {}
for batch in open(sys.argv[1]):
    if not batch.endswith("\n"):
        continue
    for resource in json.loads(batch).get("resourceLogs", []):
        for scope in resource["scopeLogs"]:
            for record in scope["logRecords"]:
                number, _, text = record["body"]["stringValue"].partition(" ")
                attributes = {a["key"]: a["value"].get("stringValue") for a in record["attributes"]}
                files.add(attributes["log.file.path"])
                lines.setdefault(int(number), []).append((text, attributes["log.iostream"]))
end = max(lines, default=0)
if lines.get(end, [("", "")])[0][0] != "end":
    sys.exit("the last line is not there yet")
missing = [n for n in range(end) if n not in lines]
twice = [n for n in lines if len(lines[n]) != 1]


def wanted(n):
    if n == end:
        return ("end", "stdout")
    if n % 500 == 499:
        return ("x" * (30000 + n % 20000), "stdout")
    return ("error", "stderr") if n % 50 == 49 else ("x" * (n % 150), "stdout")


wrong = [n for n in lines if lines[n][0] != wanted(n)]
print(f"{end + 1} lines in {len(files)} files; lost {len(missing)} {missing[:5]}, doubled {len(twice)} {twice[:5]}, not whole {len(wrong)} {wrong[:5]}")
sys.exit(bool(missing or twice or wrong))
C
collected() { python3 "$work/read.py" "$work/collected" >"$work/read" 2>&1; }
if eventually collected || eventually collected; then
    pass "not a line is lost or doubled, long ones are whole: $(<"$work/read")"
else
    fail "not a line is lost or doubled, long ones are whole" "$work/read"
fi

# The spans come five seconds after the first one.
cat >"$work/spans.py" <<'C'
import json, sys

spans = {}
for batch in open(sys.argv[1]):
    for resource in json.loads(batch).get("resourceSpans", []) if batch.endswith("\n") else []:
        service = next(a["value"]["stringValue"] for a in resource["resource"]["attributes"] if a["key"] == "service.name")
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                spans[span["spanId"]] = (service, span["name"], span.get("parentSpanId", ""), span["traceId"])
service, method, child = sys.argv[2:]
for span, (name, method_of, parent, trace) in spans.items():
    if (name, method_of) == ("rrun-cri", f"runtime.v1.{service}/{method}") and spans.get(parent, ("", ""))[0] == "cri-tools" and spans[parent][3] == trace:
        def below(s):
            while s:
                if s == span:
                    return True
                s = spans.get(s, ("", "", ""))[2]
            return False
        if any(n == child and t == trace and below(p) for _, n, p, t in spans.values()):
            sys.exit()
sys.exit("\n".join(sorted(f"{name}: {what}" for name, what, *_ in spans.values())) or "no spans")
C
spans() { python3 "$work/spans.py" "$work/collected" "$@"; }
ok "a trace goes from crictl through RunPodSandbox to a CNI plugin" 'eventually spans RuntimeService RunPodSandbox "CNI ADD: bridge" || spans RuntimeService RunPodSandbox "CNI ADD: bridge"'
ok "and to the pod's monitor" 'spans RuntimeService RunPodSandbox "monitor: MakeSandbox"'
crictl rmp -f "$pod" >/dev/null 2>&1
kill $collector
finish
