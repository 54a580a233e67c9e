#!/usr/bin/env bash
# critest in full: every case passes, or is skipped for something that this kernel lacks. Arguments are
# critest's own (as -ginkgo.focus=PATTERN); WebSocket is tried only without any.
NEEDS="critest crictl apparmor_parser"
. "$(dirname "$0")/cri-lib.sh"

# critest loads its profiles by `sudo apparmor_parser`.
mkdir "$work/bin"
printf '#!/bin/sh\nexec "$@"\n' >"$work/bin/sudo"
files=${CLIENT_apparmor_parser%/usr/*}
echo "policy-features=$files/usr/share/apparmor-features/features" >"$work/parser.conf"
printf '#!/bin/sh\nexec %s --config-file %s --base %s "$@"\n' "$CLIENT_apparmor_parser" "$work/parser.conf" "$files/etc/apparmor.d" >"$work/bin/apparmor_parser"
chmod 755 "$work"/bin/*
PATH=$work/bin:$PATH

start_registry
start_server

# critest NAME ARGUMENT...: one run; a line for each case that failed or was skipped, and one for the rest
critest() {
    local name=$1 status
    shift
    "$CLIENT_critest" -config "$work/crictl.yaml" -runtime-endpoint "$endpoint" -nri-socket "$work/nri.sock" -ginkgo.no-color \
        -ginkgo.json-report "$work/$name.json" "$@" >"$work/$name.log" 2>&1 </dev/null
    status=$?
    if [ ! -s "$work/$name.json" ]; then fail "critest, $name" "$work/$name.log"; return; fi
    python3 "$here/critest.py" "$name" "$work/$name.json" >"$work/$name.txt"
    grep -E '^(FAIL|SKIP|    )' "$work/$name.txt"
    grep -vE '^(FAIL|SKIP|    )' "$work/$name.txt"
    passed=$((passed + $(grep -c ^PASS "$work/$name.txt")))
    skipped=$((skipped + $(grep -c ^SKIP "$work/$name.txt")))
    failed=$((failed + $(grep -c ^FAIL "$work/$name.txt")))
    [ $status = 0 ] || grep -qE '^FAIL|: the kernel has no ' "$work/$name.txt" || fail "critest, $name: status $status" "$work/$name.log"
}

critest "SPDY" "$@"
[ $# != 0 ] || critest "WebSocket" -ginkgo.focus=streaming -websocket-exec -websocket-attach -websocket-portforward
finish
