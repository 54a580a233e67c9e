#!/usr/bin/env bash
# suites-guest.sh [FILE.bats...]: runc's own suite (runc-bats.sh) on $RRUN in a guest machine with cgroup v2, which
# ../shared/vm/run-in-vm boots for each file; an hour or more for each driver. A file that was seen to its end since the
# runtime was built is not run again, unless it is named; what a file had shown when its time was over is kept. Environment:
#   RRUN, FILTER  as for runc-bats.sh
#   DRIVERS       of cgroups: cgroupfs systemd
#   TIME          seconds a file may take (2400)
#   BATS_TIME     seconds a case may take (600)
#   RUN_IN_VM     the program that boots the guest
# Failures that are known stand in runc-bats-guest.expected.
set -euo pipefail
# shellcheck source=integration/suites-lib.sh
. "$(dirname "$0")/suites-lib.sh"
suite=${RUNC_SUITE:-$newest_runc}
vm=${RUN_IN_VM:-../shared/vm/run-in-vm}
[ -x "$vm" ] || { echo "suites-guest: no $vm: runc's suite cannot be run with cgroup v2 here" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "suites-guest: root only" >&2; exit 1; }

RUNTIME_PATH=$(runtime)
runc_suite "$suite"
criu=$(integration/clients .cache/clients criu | sed -n 's,^criu=\(.*\)/criu$,\1:,p')
# What the guest has not: bats; go, which the suite asks for the name of the machine; a C compiler, whose place a copy of
# what this machine's makes takes; a udev to wait for.
bin=$suites/bats/bin data=$suites/runc-$suite/tests/integration/testdata
mkdir -p "$suites"/bats/{bin,lib,libexec}
cp -r /usr/bin/bats "$bin/" && cp -r /usr/lib/bats-core "$suites/bats/lib/" && cp -r /usr/libexec/bats-core "$suites/bats/libexec/"
for source in "$data"/*.c; do gcc -static -o "${source%.c}.made" "$source"; done
printf '#!/bin/sh\necho %s\n' "$(go env GOARCH)" >"$bin/go"
printf '#!/bin/sh\n[ "$1 $2" = "-static -o" ] && exec cp "${4%%.c}.made" "$3"\necho "no compiler in the guest" >&2\nexit 1\n' >"$bin/gcc"
printf '#!/bin/sh\n' >"$bin/udevadm"
chmod +x "$bin"/{go,gcc,udevadm}

named=$#
[ $named -gt 0 ] || set -- $(cd "$suites/runc-$suite/tests/integration" && ls ./*.bats | sed 's,^\./,,')
status=0
for driver in ${DRIVERS:-cgroupfs systemd}; do
    results=$suites/results/$suite/guest-$driver/$(basename "$RUNTIME_PATH")
    mkdir -p "$results"
    taps=()
    for file; do
        tap=$results/${file%.bats}.tap
        taps+=("$tap")
        seen=$(grep -cE '^(not )?ok ' "$tap" 2>/dev/null || :)
        if [ $named = 0 ] && [ "$tap" -nt "$RUNTIME_PATH" ] && grep -qx "1\.\.$seen" "$tap"; then continue; fi
        start=$SECONDS
        rm -f "$tap"
        "$vm" $([ "$driver" != systemd ] || echo --systemd) --cpus 2 --mem 3G --timeout "$((${TIME:-2400} + 60))" --share "$(readlink -f .cache)" \
            --share "$(dirname "$RUNTIME_PATH"):ro" --env FILTER --env RUNC_SUITE="$suite" --env RUNTIME_PATH="$RUNTIME_PATH" \
            --env RESULTS="$results" --env BATS_TIME="${BATS_TIME:-600}" --env FILE_TIME="${TIME:-2400}" --env SYSTEMD="$([ "$driver" != systemd ] || echo 1)" --env TMPDIR=/tmp \
            --env PATH="$suites/bats/bin:$criu/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
            -- bash -c 'ip link delete dummy0; exec bash integration/runc-bats.sh "$0"' "$file" >"$results/${file%.bats}.log" 2>&1 </dev/null || :
        echo "$driver: $((SECONDS - start)) s: $(tail -n 1 "$results/${file%.bats}.log")"
    done
    count_taps "runc-bats $suite on $(basename "$RUNTIME_PATH"), guest, $driver" "$PWD/integration/runc-bats-guest.expected" "${taps[@]}" || status=1
done
exit $status
