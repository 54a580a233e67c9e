#!/usr/bin/env bash
# rrun-cri beside containerd, taking turns: `crictl exec true`, and bytes through exec and port-forward by the libraries behind
# kubectl (streams/bench.go). `make bench-streams` runs it, and puts its table into docs/performance.md with UPDATE=1.
NEEDS="crictl streams containerd runc"
. "$(dirname "$0")/cri-lib.sh"
ROUNDS=${ROUNDS:-5} SIZE=${SIZE:-500000000}
image=registry.k8s.io/e2e-test-images/busybox:1.29-2
servers=()

# serve NAME HANDLER: one of the servers, with a pod of the host's network and a container in it
serve() {
    local all=$work pod id server
    work=$all/$1 endpoint=unix://$all/$1/cri.sock
    mkdir -p "$work/cni"
    ln -sfn "$all/certs" "$work/certs"
    printf 'runtime-endpoint: %s\nimage-endpoint: %s\ntimeout: 60\n' "$endpoint" "$endpoint" >"$work/crictl.yaml"
    printf '{"metadata": {"name": "pod", "namespace": "bench", "uid": "rrun-it"}, "log_directory": "%s", "linux": {"security_context": {"namespace_options": {"network": 2}}}}\n' \
        "$work" >"$work/pod.json"
    printf '{"metadata": {"name": "idle"}, "image": {"image": "%s"}, "command": ["sleep", "1000000"], "log_path": "idle.log",
      "linux": {"security_context": {"namespace_options": {"network": 2}}}}\n' $image >"$work/idle.json"
    "start_${1//-/_}"
    eventually crictl version || { fail "$1 starts" "$work/server.log"; finish; exit 1; }
    { crictl pull $image && pod=$(crictl runp ${2:+--runtime "$2"} "$work/pod.json") && id=$(crictl create "$pod" "$work/idle.json" "$work/pod.json") &&
        crictl start "$id"; } >"$work/output" 2>&1 || { fail "$1: a pod" "$work/output"; finish; exit 1; }
    servers+=("$1=$work/cri.sock=$id=$pod")
    work=$all
}

export LOG_LEVEL=warn
start_registry
serve rrun-cri ""
serve containerd runc
"$CLIENT_streams" -bench "$ROUNDS" -size "$SIZE" -crictl "$CLIENT_crictl" "${servers[@]}" >"$work/table" || exit 1
cat "$work/table"
[ -z "${UPDATE:-}" ] || python3 - "$here/../docs/performance.md" "$work/table" <<'C'
import re, sys
page, table = sys.argv[1], open(sys.argv[2]).read()
text = open(page).read()
new, count = re.subn(r"(<!-- bench-streams: begin -->\n).*?(<!-- bench-streams: end -->)", lambda m: m[1] + table + m[2], text, flags=re.S)
if count != 1:
    sys.exit("docs/performance.md has no place for the table")
open(page, "w").write(new)
C
