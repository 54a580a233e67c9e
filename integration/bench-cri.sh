#!/usr/bin/env bash
# rrun-cri beside containerd, taking turns: pods from scratch, exec probes, memory of a pod's monitor; then MANY pods on
# rrun-cri alone: lists, a restart, the daemon's memory. `make bench-cri` runs it; docs/performance.md has its figures.
NEEDS="crictl containerd runc"
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cri-lib.sh"
TIMES=${TIMES:-20} MANY=${MANY:-500}
image=registry.k8s.io/e2e-test-images/busybox:1.29-2
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

# private NAME: Private_Dirty of each process of that name, KiB
private() {
    for pid in $(pgrep -f "$1"); do sed -n 's/^Private_Dirty: *\([0-9]*\) kB/\1/p' "/proc/$pid/smaps_rollup" 2>/dev/null; done | sort -n | xargs
}

export LOG_LEVEL=warn
start_registry
serve rrun-cri 10.91.0.0/16
serve containerd 10.92.0.0/16
"$CRI_BENCH" compare "$TIMES" $image "rrun-cri=$work/rrun-cri/cri.sock=" "containerd=$work/containerd/cri.sock=runc" || exit 1
for name in rrun-cri containerd; do "$CRI_BENCH" many 0 2 $image "$work/$name/cri.sock" || exit 1; done
echo
echo "Private_Dirty with two pods of one container each, KiB: rrun-monitor $(private 'rrun-monitor serve'); containerd-shim $(private containerd-shim-runc-v2) and its pause $(private /pause)"
[ "$MANY" != 0 ] || exit 0

socket=$work/rrun-cri/cri.sock
"$CRI_BENCH" many 2 "$MANY" $image "$socket" || exit 1
daemon=$(pgrep -fo "rrun-cri --config")
"$CRI_BENCH" list "$socket"
echo "the daemon's memory (RSS): $(sed -n 's/^VmRSS: *//p' "/proc/$daemon/status")"
kill -9 "$daemon"
start=$(date +%s%N)
(work=$work/rrun-cri; start_rrun_cri)
until "$CRI_BENCH" list "$socket" >"$work/listed" 2>/dev/null; do sleep 0.01; done
echo "killed and started again, it serves after $((($(date +%s%N) - start) / 1000000)) ms, the lists included"
cat "$work/listed"
