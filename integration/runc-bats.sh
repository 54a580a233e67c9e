#!/usr/bin/env bash
# runc-bats.sh [FILE.bats...]: runc's own integration suite on $RRUN (default bin/rrun), called by the name runc
# as its cases expect. Root only; needs bats, jq, gawk, go and a C compiler. The suite comes from runc's Go
# module; its images are made of the host's own busybox and Debian packages. Environment:
#   RUNC_SUITE  release of the suite (v1.3.6);  FILTER  a regular expression of cases
#   BATS_TIME   seconds a case may take (120);  SUMMARY=1 prints the count alone
set -euo pipefail
cd "$(dirname "$0")/.."
RRUN=$(readlink -f "${RRUN:-bin/rrun}")
suite=${RUNC_SUITE:-v1.3.6}
dir=$PWD/.cache/suites/runc-$suite
for tool in bats jq gawk go; do
    command -v $tool >/dev/null || { echo "SKIP runc-bats: no $tool (apt-get install bats jq gawk golang)"; exit 0; }
done
[ "$(id -u)" = 0 ] || { echo "SKIP runc-bats: root only"; exit 0; }

# the suite, with its helper programs built
fetch() {
    local from
    mkdir -p "$dir.new"
    from=$(cd "$dir.new" && go mod download -json "github.com/opencontainers/runc@$suite" | jq -r .Dir)
    rm -rf "$dir.new"
    cp -r "$from" "$dir.new"
    chmod -R u+w "$dir.new"
    find "$dir.new" -name "*.sh" -exec chmod +x {} + # a module keeps no modes
    rm -rf "$dir.new/vendor"
    mkdir -p "$dir.new/tests/cmd/_bin"
    for program in "$dir.new"/tests/cmd/*/; do
        program=${program%/}
        [ "${program##*/}" = _bin ] ||
            (cd "$dir.new" && go build -mod=mod -o "tests/cmd/_bin/" "./tests/cmd/${program##*/}") ||
            echo "runc-bats: ${program##*/} cannot be built; its cases will fail" >&2
    done
    mv "$dir.new" "$dir"
}

# the two images, where the suite looks for them
images() {
    local data=$dir/tests/integration/testdata root applet
    root=$(mktemp -d)
    if [ ! -e "$data/busybox-amd64.tar.xz" ]; then
        mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,tmp,usr/bin,var}
        chmod 1777 "$root/tmp"
        cp /bin/busybox "$root/bin/busybox"
        for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln "$root/bin/busybox" "$root/bin/$applet"; done
        ln -s ../../bin/env "$root/usr/bin/env"
        printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
        printf 'root:x:0:\nnobody:x:65534:\n' >"$root/etc/group"
        tar -C "$root" -cJf "$data/busybox-amd64.tar.xz" .
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
        tar -C / --no-recursion -cJf "$data/debian-amd64.tar.xz" -T "$root/all"
    fi
    rm -rf "$root"
}

[ -d "$dir" ] || fetch
images
bin=$dir/as-runc
mkdir -p "$bin"
ln -sf "$RRUN" "$bin/runc"
files=("$@")
[ $# -gt 0 ] || files=("$dir"/tests/integration/*.bats)
for i in "${!files[@]}"; do [ -e "${files[i]}" ] || files[i]=$dir/tests/integration/${files[i]}; done
log=${LOG:-$dir/result.tap}
# In namespaces of its own, so that nothing of it stays mounted; on a terminal, which some cases take for
# granted; a case that hangs is ended.
command="exec bats -t ${FILTER:+--filter $(printf %q "$FILTER")} $(printf '%q ' "${files[@]}") >$(printf %q "$log") 2>&1"
RUNC=$bin/runc BATS_TEST_TIMEOUT=${BATS_TIME:-120} \
    unshare --mount --pid --fork --kill-child --mount-proc -- script -qec "$command" /dev/null >/dev/null 2>&1 </dev/null || :
[ -n "${SUMMARY:-}" ] || grep -E '^not ok' "$log" || :
count() { grep -cE "$1" "$log" || :; }
skipped=$(count '^ok .* # skip')
echo "runc-bats $suite: $(($(count '^ok ') - skipped)) passed, $(count '^not ok') failed, $skipped skipped"
