#!/usr/bin/env bash
# rrun-cri beside containerd, with runc and with crun, taking turns: pods from scratch, exec probes, what stands beside a pod;
# then MANY pods on rrun-cri alone: lists, a restart, the daemon's memory. `make bench-cri` runs it; as root, five minutes.
# It writes its tables into docs/performance.md. Environment:
#   TIMES    measured pods of each server (30);  MANY  pods that are just there (500)
#   REPORT=  leaves docs/ alone and prints the tables
NEEDS="crictl containerd runc crun"
V1_ALONE=1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cri-lib.sh"
TIMES=${TIMES:-30} MANY=${MANY:-500} REPORT=${REPORT-${here%/*}/docs/performance.md}
image=registry.k8s.io/e2e-test-images/busybox-static:1
CRI_BENCH=${CRI_BENCH:-${here%/*}/target/daemon/examples/cri-bench}

# in_cgroup NAME COMMAND...: starts the server in cgroups of its own
in_cgroup() { (enter_cgroups "bench-$1"; enter_cgroups "bench-$1/server"; "${@:2}"); }

# serve NAME SUBNET: one of the servers, with a folder, a bridge and addresses of its own
serve() {
    local all=$work server
    work=$all/$1
    endpoint=unix://$work/cri.sock
    mkdir -p "$work/cni"
    ln -sfn "$all/certs" "$work/certs"
    cat >"$work/cni/10-bridge.conflist" <<C
{"cniVersion": "1.0.0", "name": "$1", "plugins": [
  {"type": "bridge", "bridge": "br-${1:0:8}", "isGateway": true,
   "ipam": {"type": "host-local", "dataDir": "$work/addresses", "ranges": [[{"subnet": "$2"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
    printf 'runtime-endpoint: %s\nimage-endpoint: %s\ntimeout: 60\n' "$endpoint" "$endpoint" >"$work/crictl.yaml"
    in_cgroup "$1" "start_${1//-/_}"
    eventually crictl version || { fail "$1 starts" "$work/server.log"; finish; exit 1; }
    crictl pull $image >/dev/null || { fail "$1 pulls" "$work/server.log"; finish; exit 1; }
    work=$all
}

# bar WHAT VALUE BAR UNIT: a row, and whether the bar is met
bar() { awk -v what="$1" -v value="$2" -v bar="$3" -v unit="$4" 'BEGIN { print "| " what " | " value " " unit " | " bar " " unit " | " (value + 0 < bar + 0 ? "yes" : "no") " |" }'; }

# measure: the tables
measure() {
    local socket=$work/rrun-cri/cri.sock peer=$work/containerd/cri.sock servers daemon start what value
    servers=("rrun-cri=$socket=" "containerd and runc=$peer=runc" "containerd and crun=$peer=crun")
    echo "$(nproc) processors, Linux $(uname -r); cgroup $([ -e /sys/fs/cgroup/cgroup.controllers ] && echo v2 || echo v1); $TIMES pods of each."
    echo "containerd $("$CLIENT_containerd" --version | cut -d' ' -f3), runc $("$CLIENT_runc" --version | sed -n 's/^runc version //p'), crun $("$CLIENT_crun" --version | sed -n 's/^crun version //p')."
    echo
    "$CRI_BENCH" compare "$TIMES" $image "${servers[@]}" || return
    echo
    "$CRI_BENCH" memory $image "${servers[@]}" || return
    [ "$MANY" != 0 ] || return 0
    "$CRI_BENCH" many 0 "$MANY" $image "$socket" || return
    echo
    echo "| with $MANY pods | rrun-cri | bar | met |"
    echo "|---|--:|--:|--:|"
    "$CRI_BENCH" list "$socket" >"$work/listed" || return
    while read -r what value; do bar "${what//-/ }" "$value" 10 ms; done <"$work/listed"
    daemon=$(pgrep -fo "rrun-cri --config")
    bar "the daemon's memory (RSS)" "$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$daemon/status")" 100 MiB
    kill -9 "$daemon"
    start=$(date +%s%N)
    (work=$work/rrun-cri; in_cgroup rrun-cri start_rrun_cri)
    "$CRI_BENCH" serves "$socket" || return
    bar "killed and started again, until it lists them" $((($(date +%s%N) - start) / 1000000)) 1000 ms
    daemon=$(pgrep -fo "rrun-cri --config")
    bar "the daemon's memory (RSS) then" "$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$daemon/status")" 100 MiB
}

export LOG_LEVEL=warn
start_registry
python3 "$here/images.py" --static "$(command -v busybox)" $registry || exit 1
serve rrun-cri 10.91.0.0/16
serve containerd 10.92.0.0/16
measure >"$work/tables" || { cat "$work/tables"; tail -n 15 "$work"/*/server.log; exit 1; }
cat "$work/tables"
[ -z "$REPORT" ] || python3 - "$REPORT" "$work/tables" <<'P'
import sys
page, tables = (open(path).read() for path in sys.argv[1:])
begin, end = "<!-- bench-cri -->\n", "<!-- /bench-cri -->"
before, rest = page.split(begin)
open(sys.argv[1], "w").write(before + begin + "\n" + tables + "\n" + end + rest.split(end)[1])
P
