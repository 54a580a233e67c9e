# What the scripts in this folder share. Each runs a real client on the runtime $RRUN (default
# bin/rrun; RRUN=/usr/sbin/runc tries the script itself on runc; SUITE=sid or trixie: the engines of that
# release, in a root of their own), in process, mount and network
# namespaces of its own: when the script ends, however it ends, its daemons, containers, mounts
# and bridges are gone with them. Only cgroups outlive that; `sweep` removes them.
# shellcheck shell=bash
set -uo pipefail
set -o allexport # commands run in shells of their own, under a time limit, and use these functions

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RRUN=${RRUN:-${here%/*}/bin/rrun}

# sweep NAME: removes the cgroups of that path, in every hierarchy
sweep() {
    find /sys/fs/cgroup -depth -type d -path "*/$1*" ! -path '*/process_api*' -exec rmdir {} + 2>/dev/null
}

# cgroup_mounts: the mounted hierarchies, as lines of: folder, type, options
cgroup_mounts() { sed -n 's/.* \(\/sys\/fs\/cgroup[^ ]*\) .* - \(cgroup2\?\) [^ ]* \([^ ]*\)$/\1 \2 \3/p' /proc/self/mountinfo; }

# enter_cgroups NAME [TYPE]: moves this shell into a cgroup of that name, in every hierarchy or in those of a type
enter_cgroups() {
    local folder kind options file
    while read -r folder kind options; do
        [ "$kind" = "${2:-$kind}" ] && [ -e "$folder/cgroup.procs" ] && mkdir -p "$folder/$1" || continue
        case ,$options, in *,cpuset,*)
            for file in cpuset.mems cpuset.cpus; do cat "$folder/$file" >"$folder/$1/$file"; done
            ;;
        esac
        echo 0 >"$folder/$1/cgroup.procs"
    done < <(cgroup_mounts)
}

# with_own_cgroups NAME COMMAND...: becomes the command, in a cgroup namespace whose root is the cgroup of that
# name (own_cgroups shows it), and, where a cgroup with controllers may have no processes, below it
with_own_cgroups() {
    enter_cgroups "$1"
    exec unshare --cgroup -- bash -c 'enter_cgroups "$0/scripts" cgroup2; exec "$@"' "$@"
}

# own_cgroups: /sys/fs/cgroup shows the cgroups below the one that enter_cgroups made, as its root. With V1_ALONE a
# machine that has both versions shows the first alone: crun takes no mixture.
own_cgroups() {
    local folder kind options hierarchies
    hierarchies=$(cgroup_mounts)
    if [[ $hierarchies != "/sys/fs/cgroup "* ]]; then
        if [ -n "${V1_ALONE:-}" ]; then
            umount --recursive /sys/fs/cgroup
            hierarchies=$(grep -v ' cgroup2 ' <<<"$hierarchies")
        fi
        mount -t tmpfs -o mode=755 none /sys/fs/cgroup
    fi
    while read -r folder kind options; do
        mkdir -p "$folder"
        if [ "$kind" = cgroup2 ]; then options=; else options=$(tr , '\n' <<<"$options" | grep -vE '^(rw|ro|relatime|xattr)$' | paste -sd ,); fi
        mount -t "$kind" ${options:+-o "$options"} cgroup "$folder"
        [ "$folder" = /sys/fs/cgroup ] || continue
        sed 's/\([a-z]\+\)/+\1/g' "$folder/cgroup.controllers" >"$folder/cgroup.subtree_control"
    done <<<"$hierarchies"
}

# enter_root FOLDER: this mount namespace's root becomes the folder, with a layer over it that is thrown away; the script's
# files stay where they were. By pivot_root, for an exec in a namespace's mounts starts at the namespace's root, not at a chroot.
enter_root() {
    local root=$RRUN_INTEGRATION/root-of-suite path
    mkdir "$root" "$root-upper" "$root-work"
    mount -t overlay -o "lowerdir=$1,upperdir=$root-upper,workdir=$root-work" none "$root" || return
    for path in /proc /sys /dev "$RRUN_INTEGRATION" "${here%/*}" "${RRUN%/*}" ${IMAGE:+"${IMAGE%/*}"}; do
        case $path in /usr/* | /bin | /sbin) continue ;; esac # another runtime is that of the release
        mkdir -p "$root$path" && mount --rbind "$path" "$root$path" || return
    done
    cp /etc/hosts "$root/etc/" && mkdir "$root/old" && pivot_root "$root" "$root/old" && cd / && umount -l /old && rmdir /old
}

if [ -z "${RRUN_INTEGRATION:-}" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "SKIP ${0##*/}: the client's daemon needs root"
        echo "0 passed, 0 failed, 1 skipped"
        exit 0
    fi
    [ -x "$RRUN" ] || { echo "${0##*/}: no program $RRUN" >&2; exit 1; }
    ROOT='' IMAGE='' CRIU=''
    made=$("$here/engines" "${here%/*}/.cache/engines" ${SUITE:-} ${NEEDS_IMAGE:+image}) || { echo "${0##*/}: what it needs cannot be made" >&2; exit 1; }
    [ -z "${SUITE:-}" ] || ROOT=$(sed -n "s/^$SUITE=//p" <<<"$made")
    IMAGE=$(sed -n 's/^image=//p' <<<"$made")
    # a newer release has its own
    [ -z "${NEEDS_CRIU:-}" ] || [ -n "$ROOT" ] || CRIU=$("$here/clients" "${here%/*}/.cache/clients" criu | sed -n 's,^criu=\(.*\)/criu$,\1:,p')
    RRUN_INTEGRATION=$(mktemp -d "${TMPDIR:-/tmp}/rrun-it.XXXXXX")
    enter=(unshare --mount --pid --net --fork --kill-child --mount-proc -- bash "$0" "$@")
    if [ -n "${BARE:-}" ]; then
        bash "$0" "$@"
    elif [ -n "${OWN_CGROUPS:-}" ]; then
        (with_own_cgroups "${RRUN_INTEGRATION##*/}" "${enter[@]}")
    else
        "${enter[@]}"
    fi
    status=$?
    [ -z "${OWN_CGROUPS:-}" ] || sweep "${RRUN_INTEGRATION##*/}"
    rm -rf "$RRUN_INTEGRATION"
    exit $status
fi

if [ -n "$ROOT" ]; then
    enter_root "$ROOT" || exit 1
    ROOT='' exec bash "$here/${0##*/}" "$@"
fi

work=$RRUN_INTEGRATION
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)); echo "PASS $1"; }
fail() { # fail NAME [FILE]: with the file's end as the reason
    failed=$((failed + 1))
    echo "FAIL $1"
    [ $# -lt 2 ] || tail -n 15 "$2" | sed 's/^/     /'
}
skip() { skipped=$((skipped + 1)); echo "SKIP $1: $2"; }

# limited COMMAND: runs a shell command for at most a minute
limited() { timeout 60 bash -c "$1" </dev/null; }

# ok NAME COMMAND: the shell command succeeds
ok() { if limited "$2" >"$work/output" 2>&1; then pass "$1"; else fail "$1" "$work/output"; fi; }

# prints NAME WANTED COMMAND: the shell command succeeds and prints just WANTED (on stdout; a
# terminal's carriage returns do not count)
prints() {
    local got
    if got=$(limited "$3" 2>"$work/output" | tr -d '\r') && [ "$got" = "$2" ]; then
        pass "$1"
    else
        printf 'wanted: %s\ngot:    %s\n' "$2" "$got" >>"$work/output"
        fail "$1" "$work/output"
    fi
}

# exits NAME STATUS WORDS COMMAND: the shell command ends with STATUS, and its output has WORDS in it
exits() {
    local got=0
    limited "$4" >"$work/output" 2>&1 || got=$?
    if [ $got = "$2" ] && [[ $(<"$work/output") == *"$3"* ]]; then
        pass "$1"
    else
        echo "wanted status $2 and the words: $3; got status $got" >>"$work/output"
        fail "$1" "$work/output"
    fi
}

# eventually COMMAND...: waits up to ten seconds for the command to succeed
eventually() {
    local n
    for n in $(seq 100); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    return 1
}

# terminal TEXT COMMAND: runs a shell command on a terminal of 33 rows and 99 columns and types TEXT there
terminal() { python3 "$here/terminal.py" "$1" "$2"; }

# limit PID CONTROLLER V1_FILE V2_FILE: a limit of the process's cgroup, v1 or v2
limit() {
    local path
    path=$(sed -n "s/^[0-9]*:\([^:]*,\)\?$2\(,[^:]*\)\?:/ /p" "/proc/$1/cgroup" | tr -d ' ')
    if [ -n "$path" ]; then
        cat "/sys/fs/cgroup/$2$path/$3"
    else
        cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/$4"
    fi
}

# own_run: /run and the cgroups become the script's own, and what is mounted now is remembered for `left`
own_run() {
    own_cgroups
    mount -t tmpfs -o mode=755 none /run
    mkdir -p /run/lock
    findmnt --noheadings --list --output TARGET | sort >"$work/mounts"
}

# left: what the containers left, a line each: mounts, cgroups, processes, files in /run. $engine_files is a pattern of those that an engine itself leaves there.
left() {
    findmnt --noheadings --list --output TARGET | sort | comm -13 "$work/mounts" - | sed 's/^/mount /'
    find /sys/fs/cgroup -mindepth 1 -type d ! -path '*/scripts' -path "*${1:-}*" | while read -r folder; do
        # the hierarchies themselves, and the parents that an engine makes for all its containers
        grep -q " $folder " /proc/self/mountinfo || [[ $folder =~ ${engine_cgroups:-^$} ]] || echo "cgroup $folder"
    done
    local me=$BASHPID
    ps -e -o pid=,ppid=,stat=,args= | awk -v me="$me" '{ parent[$1] = $2; if ($3 !~ /^Z/) line[$1] = $0 }
        END { for (p = me; p; p = parent[p]) mine[p] = 1; for (p in line) if (!mine[p] && parent[p] != me) print "process", line[p] }'
    find /run -mindepth 1 ! -type d | grep -vE "${engine_files:-^$}" | sed 's/^/file /'
}

# nothing_left: a case of its own, when the daemons are gone
nothing_left() {
    local lines
    eventually bash -c '[ -z "$(left)" ]'
    lines=$(left)
    if [ -z "$lines" ]; then pass "nothing is left"; else echo "$lines" >"$work/output"; fail "nothing is left" "$work/output"; fi
}

# finish: the closing line; the script's exit status
finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
}

# no_criu: why nothing can be checkpointed; $CRIU is to come first in $PATH
no_criu() {
    local checked
    command -v criu >/dev/null || { echo "no criu"; return; }
    checked=$(criu check 2>&1) || { echo "criu check: $(tail -n 1 <<<"$checked")"; return; }
    return 1
}

# COUNTS: what a container does whose checkpoint is taken; the number in /count grows
COUNTS='i=0; while :; do i=$((i+1)); echo $i >/new; mv /new /count; sleep 0.1; done'

# image TAR: a small image named localhost/busybox:1, made here
image() { python3 "$here/image.py" "$(command -v busybox)" "$1"; }

busybox ip link set lo up 2>/dev/null || :
