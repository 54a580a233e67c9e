# What runc-bats.sh and runtime-tools.sh share: where the suites lie, the runtimes to compare with, and the namespaces
# they run in.
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
    [ -d "$dir" ] || runc_suite "$1" >&2 || return
    [ -x "$dir/runc" ] || (cd "$dir" && CGO_ENABLED=1 go build -mod=mod -tags "seccomp urfave_cli_no_docs" -o runc .) >&2 || return
    echo "$dir/runc"
}

# runc_suite RELEASE: runc's tree of that release, with the helper programs of its suite built
runc_suite() {
    local dir=$suites/runc-$1 program
    module "github.com/opencontainers/runc@$1" "$dir.new" || return
    mkdir -p "$dir.new/tests/cmd/_bin"
    for program in "$dir.new"/tests/cmd/*/; do
        program=$(basename "$program")
        [ "$program" = _bin ] ||
            (cd "$dir.new" && go build -mod=mod -tags seccomp -o tests/cmd/_bin/ "./tests/cmd/$program") ||
            echo "runc's ${program} cannot be built; its cases will fail"
    done
    mv "$dir.new" "$dir"
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
