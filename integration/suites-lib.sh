# What runc-bats.sh, suites-guest.sh and runtime-tools.sh share: where the suites lie, the runtimes to compare with, the
# namespaces they run in, and the count.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export PATH=$PATH:/usr/local/go/bin
suites=$PWD/.cache/suites
mkdir -p "$suites"

# module NAME@VERSION FOLDER: the module's files, from the Go module proxy, in a new folder that can be written to
module() {
    local from
    from=$(cd "$suites" && go mod download -json "$1" | jq -r '.Dir // empty') && [ -n "$from" ] || return
    rm -rf "$2"
    cp -r "$from" "$2"
    chmod -R u+w "$2"
    find "$2" -name "*.sh" -exec chmod +x {} + # a module keeps no modes
}

# runtime: the absolute path of $RRUN: a program, or the word runc for the runc of the suite's release, built here, or
# crun for Debian's newest
runtime() {
    case ${RRUN:-bin/rrun} in
    runc) runc_of "${RUNC_SUITE:-$newest_runc}" ;;
    crun) bench/peers "$suites/peers" | sed -n 's/^crun=//p' ;;
    *) readlink -f "${RRUN:-bin/rrun}" ;;
    esac
}

newest_runc=v1.5.3

# runc_of RELEASE: makes that runc where it is not made yet, and prints its path
runc_of() {
    local dir=$suites/runc-$1
    runc_suite "$1" >&2 || return
    [ -x "$dir/runc" ] || (cd "$dir" && CGO_ENABLED=1 go build -mod=mod -tags "seccomp urfave_cli_no_docs" -ldflags "-X main.gitCommit=$1" -o runc .) >&2 || return
    echo "$dir/runc"
}

# runc_suite RELEASE: runc's tree of that release, with the helper programs and the images of its suite, where it is not
# made yet
runc_suite() {
    local dir=$suites/runc-$1 program
    [ ! -d "$dir" ] || { runc_images "$1"; return; }
    module "github.com/opencontainers/runc@$1" "$dir.new" || return
    mkdir -p "$dir.new/tests/cmd/_bin"
    for program in "$dir.new"/tests/cmd/*/; do
        program=$(basename "$program")
        [ "$program" = _bin ] ||
            (cd "$dir.new" && go build -mod=mod -tags seccomp -o tests/cmd/_bin/ "./tests/cmd/$program") ||
            echo "runc's ${program} cannot be built; its cases will fail"
    done
    mv "$dir.new" "$dir" && runc_images "$1"
}

# runc_images RELEASE: the two images, where runc's suite looks for them; not compressed, whatever their name says: every
# case unpacks one. recvtty, which a case starts before, may then come too late with its socket: the cases wait for it
runc_images() {
    local data=$suites/runc-$1/tests/integration/testdata helpers=$suites/runc-$1/tests/integration/helpers.bash root applet f
    grep -q 'until \[ -S' "$helpers" ||
        sed -i 's|^\t.*/recvtty".*"$CONSOLE_SOCKET" &) &$|&\n\tlocal tries=0\n\tuntil [ -S "$CONSOLE_SOCKET" ] \|\| [ $((tries += 1)) -gt 200 ]; do sleep 0.05; done|' "$helpers"
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

# criu_path: the folder of a CRIU that knows this kernel and a colon, for $PATH; nothing where the machine's own does
criu_path() { criu check >/dev/null 2>&1 || integration/clients .cache/clients criu | sed -n 's,^criu=\(.*\)/criu$,\1:,p'; }

# count_taps WHAT EXPECTED FILE.tap...: prints each failed case, as known where it stands in the list of that name, and
# the counts; cases that the plan has and no line tells of were not seen. Fails where one is not known or was not seen
count_taps() {
    local what=$1 expected=$2 tap line case passed=0 skipped=0 failed=0 unexpected=0 seen plan unseen=0
    shift 2
    for tap; do
        seen=0
        while read -r line; do
            seen=$((seen + 1))
            case $line in
            "ok "*" # skip"*) skipped=$((skipped + 1)) ;;
            "ok "*) passed=$((passed + 1)) ;;
            *)
                failed=$((failed + 1))
                case="$(basename "$tap" .tap): $(sed -E 's/^not ok [0-9]+ //; s/ # timeout after [0-9]+s//; s/ *$//' <<<"$line")"
                if grep -qxF -e "$case" "$expected" 2>/dev/null; then echo "known: $case"
                else echo "FAIL: $case"; unexpected=$((unexpected + 1)); fi
                ;;
            esac
        done < <(grep -E '^(not )?ok ' "$tap" 2>/dev/null)
        plan=$(sed -n '1s/^1\.\.//p' "$tap" 2>/dev/null)
        [ -n "$plan" ] && [ "$seen" = "$plan" ] || { echo "not seen: $((${plan:-1} - seen)) of $(basename "$tap" .tap)"; unseen=$((unseen + ${plan:-1} - seen)); }
    done
    echo "$what: $passed passed, $failed failed ($unexpected not known), $skipped skipped$([ $unseen = 0 ] || echo ", $unseen not seen")"
    [ $unexpected = 0 ] && [ $unseen = 0 ]
}

# in_namespaces [v1] COMMAND...: runs the command in mount and PID namespaces of its own, where /sys/fs/cgroup is a fresh
# tmpfs with the host's v1 hierarchies (and, without v1, the unified one), so that folders made between them are gone at
# the end; with a TMPDIR of its own, which is removed where none of the command's mounts can be seen any more. One run of
# a script at a time: containers and cgroups have fixed names. A systemd that is asked for cgroups must know the
# processes: no PID namespace there. On pure cgroup v2 nothing is mounted.
in_namespaces() {
    local with=unified status=0 namespaces=(--mount --pid --fork --kill-child --mount-proc)
    [ "$1" != v1 ] || { with=; shift; }
    [ ! -d /run/systemd/system ] || namespaces=(--mount)
    TMPDIR=$(mktemp -d)
    export TMPDIR
    chmod 755 "$TMPDIR"
    # shellcheck disable=SC2016
    flock -o "$suites/lock-${0##*/}" unshare "${namespaces[@]}" -- bash -ec '
        if [ "$(stat -f -c %T /sys/fs/cgroup)" = tmpfs ]; then
            new=$(mktemp -d)
            mount -t tmpfs -o mode=755 none "$new"
            for h in /sys/fs/cgroup/*/cgroup.procs; do
                h=${h%/*}
                [ "${h##*/}" != unified ] || [ -n "$0" ] || continue
                mkdir "$new/${h##*/}"
                mount --bind "$h" "$new/${h##*/}"
            done
            umount --recursive /sys/fs/cgroup
            mount --move "$new" /sys/fs/cgroup
            rmdir "$new"
        fi
        "$@"' "$with" "$@" || status=$?
    rm -rf --one-file-system "$TMPDIR"
    return $status
}
