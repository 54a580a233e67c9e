#!/usr/bin/env bash
# all.sh [NAME...]: runs those clients' scripts, or all of them, and those of the engines once more with the versions of a
# newer release (CURRENT; Debian sid's where it is not set); `make integration`. `all.sh engines`: the engines' alone.
# A table at the end has each script's result, its seconds and its cases; what is left of them all on the machine is a failure.
cd "$(dirname "$0")" || exit 1
engines="containerd docker docker-build docker-daemon compose swarm podman"
current=${CURRENT:-}
[ $# != 0 ] || current=${CURRENT:-sid}
# shellcheck disable=SC2086 # a list of words
[ "$*" != engines ] || set -- $engines
[ $# != 0 ] || set -- $(ls ./*.sh | sed 's/^..//; s/\.sh$//' | grep -vE '^(all|.*lib|bench-.*|runc-bats|runtime-tools|suites-.*)$')
status=0 table=()
output=$(mktemp)
trap 'rm -f "$output" "$output.before"' EXIT

# run NAME [RELEASE]: one script, and its line of the table
run() {
    local start=$SECONDS how=PASS code=0 counts reasons
    echo "=== $1${2:+, $2}"
    SUITE=${2:-} "./$1.sh" 2>&1 | tee "$output"
    code=${PIPESTATUS[0]}
    counts=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$output" | tail -n 1)
    reasons=$(sed -nE 's/^SKIP [^:]*: *//p' "$output" | sort | uniq -c | sed -E 's/^ *1 //; s/^ *([0-9]+) /\1 times /' | paste -sd ';')
    case $code,$counts in
    0,"0 passed"*) how=SKIP counts= ;;
    0,*) ;;
    *) how=FAIL status=1 reasons=$(grep '^FAIL' "$output" | paste -sd ';') counts=${counts:-status $code, no count} ;;
    esac
    table+=("$(printf '%-15s %-9s %s %5d s  %s' "$1" "${2:-installed}" $how $((SECONDS - start)) "$counts${counts:+${reasons:+: }}$reasons")")
}

# traces: what may be left: files in /run, cgroups, mounts; without what the machine's own services do meanwhile, and what
# CRIU, iptables and mount keep for their next call
traces() {
    {
        find /run -mindepth 1 | grep -vE '^/run/(systemd|user|udev|dbus|log)(/|$)|^/run/(criu\.kdat|xtables\.lock|mount(/utab.*)?)$'
        find /sys/fs/cgroup -mindepth 1 -type d ! -path '*/process_api*' ! -path '*/system.slice/*' ! -path '*/user.slice/*'
        cut -d ' ' -f 5 /proc/self/mountinfo | sed 's/^/mount /'
    } 2>/dev/null | sort
}

traces >"$output.before"
for name; do run "$name"; done
[ -z "$current" ] || for name in $engines; do run "$name" "$current"; done
# Others may work on the machine, too: what comes and goes is not left.
traces >"$output"
for _ in 1 2 3 4 5; do
    sleep 1
    traces | comm -12 "$output" - >"$output.new" && mv "$output.new" "$output"
done
left=$(comm -13 "$output.before" "$output")

echo "=== table"
printf '%s\n' "${table[@]}"
if [ -n "$left" ]; then
    status=1
    echo "left on the machine:"
    echo "$left"
fi
exit $status
