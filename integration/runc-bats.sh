#!/usr/bin/env bash
# runc-bats.sh [FILE.bats...]: runc's own integration suite on $RRUN (bin/rrun; the word runc: the runc of the same
# release), called by the name runc as its cases expect. Root only; needs bats, jq, gawk, go and a C compiler. The suite
# comes from runc's Go module; its images are made of the host's own busybox and Debian packages. Environment:
#   RUNC_SUITE   release of the suite (suites-lib.sh names the newest)
#   FILTER       a regular expression of cases
#   BATS_TIME    seconds a case may take (240)
#   SYSTEMD=1    the systemd driver
#   RESULTS=DIR  where each file's TAP goes (.cache/suites/results/NAME of the runtime)
# The cases that fail for runc as well, and those that ask for its internals, stand in runc-bats.expected; a failure
# that is not there makes the script fail.
set -euo pipefail
# shellcheck source=integration/suites-lib.sh
. "$(dirname "$0")/suites-lib.sh"
suite=${RUNC_SUITE:-$newest_runc}
expected=$PWD/integration/runc-bats.expected
dir=$suites/runc-$suite
if [ -z "${RUNTIME_PATH:-}" ]; then
    for tool in bats jq gawk go; do
        [ "$tool" = go ] && [ -d "$dir" ] || command -v $tool >/dev/null || { echo "SKIP runc-bats: no $tool"; exit 0; }
    done
    [ "$(id -u)" = 0 ] || { echo "SKIP runc-bats: root only"; exit 0; }
    RUNTIME_PATH=$(runtime)
    export RUNTIME_PATH
    [ -d "$dir" ] || runc_suite "$suite"
    in_namespaces bash "$0" "$@"
    exit
fi

# The two images, where the suite looks for them; not compressed, whatever their name says: every case unpacks one.
images() {
    local data=$dir/tests/integration/testdata root applet f
    root=$(mktemp -d)
    if [ ! -e "$data/busybox-amd64.tar.xz" ]; then
        mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,tmp,usr/bin,var}
        chmod 755 "$root"
        chmod 1777 "$root/tmp"
        cp /bin/busybox "$root/bin/busybox"
        for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln "$root/bin/busybox" "$root/bin/$applet"; done
        ln -s ../../bin/env "$root/usr/bin/env"
        printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
        printf 'root:x:0:\nnobody:x:65534:\n' >"$root/etc/group"
        tar -C "$root" -cf "$data/busybox-amd64.tar.xz" .
    fi
    if [ ! -e "$data/debian-amd64.tar.xz" ]; then
        # The files of all required packages, and the libraries that their programs need, by their real folders.
        dpkg-query -W -f '${Package}:${Architecture} ${Priority}\n' | sed -n 's/ required$//p' | xargs dpkg -L |
            grep -vE '^/usr/share/(doc|man|locale|info)/|^/\.$' | sort -u >"$root/files"
        while read -r f; do if [ -f "$f" ] && [ -x "$f" ]; then ldd "$f" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*'; fi; done \
            <"$root/files" | sort -u >"$root/libraries" || :
        { cat "$root/files"; while read -r f; do echo "$f"; readlink -f "$f"; done <"$root/libraries"
            printf '%s\n' /bin /sbin /lib /lib64 /etc/passwd /etc/group /tmp /proc /sys /dev; } |
            while read -r f; do if [ -e "$f" ] || [ -L "$f" ]; then echo "$(readlink -f "${f%/*}/.")/${f##*/}"; fi; done |
            sed 's,^/*,,' | grep -v '^dev/' | sort -u >"$root/all"
        tar -C / --no-recursion -cf "$data/debian-amd64.tar.xz" -T "$root/all"
    fi
    rm -rf "$root"
}
images

name=$(basename "$RUNTIME_PATH")${SYSTEMD:+-systemd}
results=${RESULTS:-$suites/results/$suite/$name}
mkdir -p "$results"
tmp=$TMPDIR
export RUNC=$tmp/runc BATS_TEST_TIMEOUT=${BATS_TIME:-240}
ln -s "$RUNTIME_PATH" "$RUNC"
[ -z "${SYSTEMD:-}" ] || export RUNC_USE_SYSTEMD=1
[ $# -gt 0 ] || { cd "$dir/tests/integration"; set -- *.bats; }
clean() {
    # What the cases leave: the parent of the cgroups they name.
    for h in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ ! -d "$h/runc-cgroups-integration-test" ] || find "$h/runc-cgroups-integration-test" -depth -type d -exec rmdir {} + || :
    done
}
trap clean EXIT

# On a terminal, which some cases take for granted, and where nobody ever types anything, not even an end of input.
mkfifo "$tmp/nobody"
exec 8<>"$tmp/nobody"
failed=() passed=0 skipped=0
for file; do
    log=$results/$(basename "$file" .bats).tap
    command="exec bats -t ${FILTER:+--filter $(printf %q "$FILTER")} $(printf %q "$dir/tests/integration/$file") >$(printf %q "$log") 2>&1"
    script -qec "$command" /dev/null >/dev/null 2>&1 <&8 8>&- || :
    while read -r line; do
        case $line in
        "ok "*" # skip"*) skipped=$((skipped + 1)) ;;
        "ok "*) passed=$((passed + 1)) ;;
        "not ok "*) failed+=("$(basename "$file" .bats): $(sed -E 's/^not ok [0-9]+ //; s/ *$//' <<<"$line")") ;;
        esac
    done < <(grep -E '^(not )?ok ' "$log")
done

unexpected=0
for case in ${failed[@]+"${failed[@]}"}; do
    if grep -qxF -e "$case" "$expected" 2>/dev/null; then echo "known: $case"
    else echo "FAIL: $case"; unexpected=$((unexpected + 1)); fi
done
echo "runc-bats $suite on $name: $passed passed, ${#failed[@]} failed ($unexpected not known), $skipped skipped"
[ $unexpected = 0 ]
