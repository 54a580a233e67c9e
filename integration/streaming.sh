#!/usr/bin/env bash
# The streaming server alone, driven by the Go libraries behind kubectl in every protocol and version (streams/), with plain
# processes and ports of this machine in the place of pods. SIZE is how many bytes the large transfers move each way.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
client=$(integration/clients .cache/clients streams | sed -n 's/^streams=//p')
if [ -z "$client" ]; then
    echo "SKIP streaming: no streams, see above"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
"${CARGO:-cargo}" build --quiet --locked --package rrun-cri --example streaming ${PROFILE:+--profile "$PROFILE"} || exit 1
server=${CARGO_TARGET_DIR:-target}/${PROFILE:-debug}/examples/streaming
log=$(mktemp)
trap 'rm -f "$log"*' EXIT
status=0
for mode in "" -tls; do
    # shellcheck disable=SC2086 # no word or one
    "$client" -size "${SIZE:-1000000000}" ${RUN:+-run "$RUN"} $mode "$server" 2>"$log.err" | sed -u "s/^\(PASS.*\))\$/\1${mode:+, TLS})/" | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || { status=1; tail -n 20 "$log.err"; }
done
echo "$(grep -c '^PASS' "$log") passed, $(grep -c '^FAIL' "$log") failed, 0 skipped"
exit $status
