#!/usr/bin/env bash
# Prometheus scrapes rrun-cri: every metric of the daemon is read, typed and asked for; so are all that the
# dashboard in docs/ draws, and CRI's 56 container metrics are there for a pod that runs.
NEEDS="crictl prometheus"
. "$(dirname "$0")/cri-lib.sh"

metrics=127.0.0.1:9102
METRICS=$metrics
start_registry
start_server

busybox=registry.k8s.io/e2e-test-images/busybox:1.29-2
printf '{"metadata": {"name": "pod", "namespace": "metrics", "uid": "rrun-it", "attempt": 0}, "linux": {"cgroup_parent": "/metrics"}}\n' >"$work/pod.json"
printf '{"metadata": {"name": "busy"}, "image": {"image": "%s"}, "command": ["sh", "-c", "dd if=/dev/zero of=/file bs=1M count=2; sleep 1000"],
  "linux": {"resources": {"cpu_period": 100000, "cpu_quota": 50000, "memory_limit_in_bytes": 67108864}}}\n' $busybox >"$work/busy.json"
ok "pull" "crictl pull $busybox"
pod=$(crictl runp "$work/pod.json" 2>"$work/output") || { fail "runp" "$work/output"; finish; exit; }
id=$(crictl create "$pod" "$work/busy.json" "$work/pod.json") && crictl start "$id" >/dev/null
crictl inspect no-such-container >/dev/null 2>&1

printf 'global: {scrape_interval: 1s}\nscrape_configs: [{job_name: rrun-cri, static_configs: [{targets: ["%s"]}]}]\n' $metrics >"$work/prometheus.yml"
"$CLIENT_prometheus" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" --web.listen-address=127.0.0.1:9103 >"$work/prometheus.log" 2>&1 &
prometheus=$!

# ask QUERY: the value of the first series, or nothing
ask() { python3 -c 'import json, sys, urllib.parse, urllib.request
answer = json.load(urllib.request.urlopen("http://127.0.0.1:9103/api/v1/query?" + urllib.parse.urlencode({"query": sys.argv[1]}), timeout=5))
print(*(series["value"][1] for series in answer["data"]["result"][:1]))' "$1" 2>/dev/null; }

is_up() { [ "$(ask 'up{job="rrun-cri"}')" = 1 ]; }
ok "Prometheus takes what we write" "eventually is_up"
prints "a pod is ready" 1 "ask 'rrun_cri_pods{state=\"ready\"}'"
prints "a container runs" 1 "ask 'rrun_cri_containers{state=\"running\"}'"
prints "one RunPodSandbox was timed" 1 "ask 'rrun_cri_operation_seconds_count{operation=\"RunPodSandbox\"}'"
prints "one failure is counted with its code" 1 "ask 'rrun_cri_operation_errors_total{operation=\"ContainerStatus\",code=\"NotFound\"}'"
prints "one CNI ADD was timed" 1 "ask 'rrun_cri_network_seconds_count{command=\"ADD\"}'"
prints "one pull was timed" 1 "ask 'rrun_cri_image_pull_seconds_count{result=\"ok\"}'"
ok "pulled bytes" '[ "$(ask rrun_cri_image_pull_bytes_total)" -gt 100000 ]'
ok "the monitor's memory" '[ "$(ask rrun_cri_monitor_memory_bytes)" -gt 10000 ]'
prints "nothing is without an owner" 0 "ask 'sum(rrun_cri_leaked_objects_total) or vector(0)'"
ok "each metric that the dashboard draws is there" '
    for name in $(grep -oE "(rrun_cri|process)_[a-z_]+" "$here/../docs/grafana-rrun-cri.json" | grep -v _bucket | sort -u); do
        case $name in rrun_cri_leaked_objects_total) continue ;; esac
        [ -n "$(ask $name)" ] || { echo "no $name"; exit 1; }
    done'
ok "CRI: 56 metrics are described" '[ "$(crictl metricdescs | grep -c "\"name\": *\"container_")" = 56 ]'
ok "CRI: what needs no special kernel has values" '
    crictl metricsp >"$work/metricsp.json"
    for name in $(crictl metricdescs | sed -n "s/.*\"name\": *\"\(container_[a-z_]*\)\".*/\1/p"); do
        case $name in *_pressure_* | *_hugetlb_* | *_blkio_* | *_fs_reads_* | *_fs_writes_*) continue ;; esac
        grep -q "\"$name\"" "$work/metricsp.json" || { echo "no $name"; exit 1; }
    done'
kill $prometheus
crictl rmp -f "$pod" >/dev/null 2>&1
ok "the pod is gone from the metrics" 'eventually python3 -c "
import urllib.request
assert \"rrun_cri_pods{state=\\\"ready\\\"} 0\" in urllib.request.urlopen(\"http://$metrics/metrics\").read().decode()"'
finish
