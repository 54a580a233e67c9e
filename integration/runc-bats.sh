#!/usr/bin/env bash
# runc-bats.sh [FILE.bats...]: runc's own integration suite on $RRUN (bin/rrun; the words runc and crun: the runc
# of the same release, Debian sid's crun), called by the name runc as its cases expect. Root only; needs bats, jq, gawk, go and a C compiler. The suite
# comes from runc's Go module; its images are made of the host's own busybox and Debian packages. Environment:
#   RUNC_SUITE   release of the suite (suites-lib.sh names the newest)
#   WITHOUT      files that are left out where none are named (checkpoint events)
#   FILTER       a regular expression of cases
#   BATS_TIME    seconds a case may take (240)
#   FILE_TIME    seconds a file may take (1800)
#   SYSTEMD=1    the systemd driver
#   RESULTS=DIR  where each file's TAP goes (.cache/suites/results/NAME of the runtime)
#   EXPECTED     a list of cases (runc-bats.expected): those that fail for runc as well, and those that ask for its
#                internals; a failure that is not there makes the script fail
# CRIU, where the machine's own cannot, is sid's (clients).
set -euo pipefail
# shellcheck source=integration/suites-lib.sh
. "$(dirname "$0")/suites-lib.sh"
suite=${RUNC_SUITE:-$newest_runc}
expected=${EXPECTED:-$PWD/integration/runc-bats.expected}
dir=$suites/runc-$suite
if [ -z "${RUNTIME_PATH:-}" ]; then
    for tool in bats jq gawk go; do
        [ "$tool" = go ] && [ -d "$dir" ] || command -v $tool >/dev/null || { echo "SKIP runc-bats: no $tool"; exit 0; }
    done
    [ "$(id -u)" = 0 ] || { echo "SKIP runc-bats: root only"; exit 0; }
    RUNTIME_PATH=$(runtime)
    export RUNTIME_PATH
    PATH=$(criu_path)$PATH
    runc_suite "$suite"
    view=()
    [ "${RRUN:-}" != crun ] || view=(v1) # it takes no mixture
    in_namespaces "${view[@]}" bash "$0" "$@"
    exit
fi

name=$(basename "$RUNTIME_PATH")${SYSTEMD:+-systemd}
results=${RESULTS:-$suites/results/$suite/$name}
mkdir -p "$results"
tmp=$TMPDIR
export RUNC=$tmp/runc
ln -s "$RUNTIME_PATH" "$RUNC"
[ -z "${SYSTEMD:-}" ] || export RUNC_USE_SYSTEMD=1
cd "$dir/tests/integration"
# shellcheck disable=SC2046,SC2086,SC2035 # names without spaces
[ $# -gt 0 ] || set -- $(ls *.bats | grep -vxF "$(printf '%s.bats\n' ${WITHOUT:-})")
clean() {
    # What the cases leave: the parent of the cgroups they name.
    for h in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ ! -d "$h/runc-cgroups-integration-test" ] || find "$h/runc-cgroups-integration-test" -depth -type d -exec rmdir {} + || :
    done
    umount /etc/criu
    rmdir --ignore-fail-on-non-empty /etc/criu
}
# A case writes the machine's configuration of CRIU there.
mkdir -p /etc/criu
mount -t tmpfs none /etc/criu
trap clean EXIT

# On a terminal, which some cases take for granted, and where nobody ever types anything, not even an end of input.
mkfifo "$tmp/nobody"
exec 8<>"$tmp/nobody"
taps=()
for file; do
    taps+=("$results/$(basename "$file" .bats).tap")
    command="exec bats -t ${FILTER:+--filter $(printf %q "$FILTER")} $(printf %q "$dir/tests/integration/$file") >$(printf %q "${taps[-1]}") 2>&1"
    export BATS_TEST_TIMEOUT=${BATS_TIME:-240}
    # A bare `wait` in its cases waits for bats' own clock as well.
    [ "$file" != events.bats ] || unset BATS_TEST_TIMEOUT
    timeout -k 5 "${FILE_TIME:-1800}" script -qec "$command" /dev/null >/dev/null 2>&1 <&8 8>&- || :
done
count_taps "runc-bats $suite on $name" "$expected" "${taps[@]}"
