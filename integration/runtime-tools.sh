#!/usr/bin/env bash
# runtime-tools.sh [NAME...]: the validation programs of runtime-tools on $RRUN (bin/rrun; the words runc and crun: those
# runtimes' newest releases), and the count of their TAP lines. Root only; needs go and jq. The programs come from
# runtime-tools' Go module, root file system included. They run in a view of cgroup v1 alone, which crun asks for.
# Environment:
#   RESULTS=DIR  where each program's TAP goes (.cache/suites/results/runtime-tools/NAME of the runtime)
#   TIME         seconds a program may take (120)
# Programs with failures that runc and crun have too stand in runtime-tools.expected, each with the number of its failing
# lines; more than that makes the script fail.
set -euo pipefail
# shellcheck source=integration/suites-lib.sh
. "$(dirname "$0")/suites-lib.sh"
release=v0.9.1-0.20260316125833-8a4db579f5c8
dir=$suites/runtime-tools
expected=$PWD/integration/runtime-tools.expected
if [ -z "${RUNTIME:-}" ]; then
    for tool in jq go; do
        [ "$tool" = go ] && [ -d "$dir" ] || command -v $tool >/dev/null || { echo "SKIP runtime-tools: no $tool"; exit 0; }
    done
    [ "$(id -u)" = 0 ] || { echo "SKIP runtime-tools: root only"; exit 0; }
    if [ ! -d "$dir" ]; then
        module "github.com/opencontainers/runtime-tools@$release" "$dir.new"
        (cd "$dir.new" && rm -rf vendor && export CGO_ENABLED=0 && mkdir programs && go build -mod=mod -o . ./cmd/runtimetest &&
            find validation -mindepth 1 -maxdepth 1 -type d ! -name util | sed 's,^,./,' | xargs go build -mod=mod -o programs/)
        mv "$dir.new" "$dir"
    fi
    RUNTIME=$(runtime)
    export RUNTIME
    in_namespaces v1 bash "$0" "$@"
    exit
fi

results=${RESULTS:-$suites/results/runtime-tools/$(basename "$RUNTIME")}
mkdir -p "$results"
late_kill=$results/late-kill
printf '#!/bin/sh\n[ "$1" != kill ] || sleep 1\nexec "%s" "$@"\n' "$RUNTIME" >"$late_kill"
chmod +x "$late_kill"
# What the programs of relative cgroup paths leave.
trap 'find /sys/fs/cgroup/*/testdir -depth -type d -exec rmdir {} + 2>/dev/null || :' EXIT
cd "$dir"
[ $# -gt 0 ] || set -- $(ls programs)
passed=0 failed=0 skipped=0 unexpected=0
for name; do
    status=0
    # killsig sends its signal as soon as the container runs, which may be before its shell has set the trap.
    RUNTIME=$([ "$name" = killsig ] && echo "$late_kill" || echo "$RUNTIME") \
        timeout -k 5 "${TIME:-120}" "programs/$name" >"$results/$name.tap" 2>"$results/$name.err" </dev/null || status=$?
    # Indented lines are those of a program inside the container.
    skips=$(grep -cE '^\s*(not )?ok .*# ?(skip|SKIP)' "$results/$name.tap" || :)
    bad=$(grep -E '^\s*not ok ' "$results/$name.tap" | grep -cvE '# ?(skip|SKIP|TODO)' || :)
    good=$(grep -E '^\s*ok ' "$results/$name.tap" | grep -cvE '# ?(skip|SKIP)' || :)
    # A program that ends with an error says no more than that.
    [ $status = 0 ] || bad=$((bad + 1))
    passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + skips))
    [ "$bad" -gt 0 ] || continue
    known=$(sed -n "s/^$name //p" "$expected" 2>/dev/null || :)
    if [ "$bad" -le "${known:-0}" ]; then echo "known: $name, $bad lines"
    else echo "FAIL: $name, $bad lines (status $status)"; unexpected=$((unexpected + 1)); fi
done
echo "runtime-tools on $(basename "$RUNTIME"): $passed passed, $failed failed ($unexpected programs not known), $skipped skipped"
[ $unexpected = 0 ]
