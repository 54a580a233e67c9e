#!/usr/bin/env bash
# The streaming server alone, driven by the Go libraries behind kubectl in every protocol and version; with plain processes
# and ports of this machine in the place of pods. SIZE is how many bytes the large transfers move each way.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
if ! command -v go >/dev/null; then
    echo "SKIP streaming: go 1.26 or newer is needed"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
mkdir -p .cache/clients
client=$PWD/.cache/clients/streaming-client
(cd integration/streaming-client && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$client" .) || exit 1
"${CARGO:-cargo}" build --quiet --locked --package rrun-cri --example streaming || exit 1
server=${CARGO_TARGET_DIR:-target}/debug/examples/streaming
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
for mode in "" -tls; do
    # shellcheck disable=SC2086 # no word or one
    "$client" -size "${SIZE:-1000000000}" $mode "$server" 2>"$log.err" | tee -a "$log" | sed "s/^ok  /PASS/; s/)\$/)${mode:+, TLS}/"
    [ "${PIPESTATUS[0]}" = 0 ] || { status=1; tail -n 20 "$log.err"; }
done
rm -f "$log.err"
echo "$(grep -c '^ok' "$log") passed, $(grep -c '^FAIL' "$log") failed, 0 skipped"
exit $status
