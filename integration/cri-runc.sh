#!/usr/bin/env bash
# cri-runc.sh [ARGUMENT...]: the tests of rrun-cri (tests/cri/) once more with runc as the handler, in sid's version: what they
# ask of a runtime is no more than what runc does. As root, a minute; the arguments are the test program's. Faults at every step and the
# monitor alone do not depend on the runtime and are left out. What runc is known to do otherwise (tests/src/known.rs) is
# printed as `DIFFERS name: how`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "SKIP cri-runc: root only"; exit 0; }
RRUN=$(integration/clients "$PWD/.cache/clients" runc | sed -n 's/^runc=//p')
[ -n "$RRUN" ] || { echo "SKIP cri-runc: no runc, see above"; exit 0; }
export RRUN
"$RRUN" --version | sed -n 1p
echo "DIFFERS checkpoint: runc saves no container whose streams are FIFOs of the host, as rrun-cri's are"
# Its last line is the count that all.sh shows.
scripts/test -p tests --test cri -- --skip faults:: --skip monitor:: --skip checkpoint:: "$@" |
    sed -E 'p; s/^test result: .* ([0-9]+ passed); ([0-9]+ failed);.*/\1, \2/; t; d'
