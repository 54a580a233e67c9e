#!/usr/bin/env bash
# all.sh [NAME...]: runs those clients' scripts, or all of them, and those of the engines once more with the versions of a
# newer release (CURRENT; Debian sid's where it is not set); `make integration`. `all.sh engines`: the engines' alone.
cd "$(dirname "$0")" || exit 1
engines="containerd docker docker-build docker-daemon compose swarm podman"
current=${CURRENT:-}
[ $# != 0 ] || current=${CURRENT:-sid}
# shellcheck disable=SC2086 # a list of words
[ "$*" != engines ] || set -- $engines
[ $# != 0 ] || set -- $(ls ./*.sh | sed 's/^..//; s/\.sh$//' | grep -vE '^(all|.*lib|bench-.*|runc-bats|runtime-tools)$')
status=0
for name; do
    echo "=== $name"
    ./"$name.sh" || status=1
done
[ -z "$current" ] || for name in $engines; do
    echo "=== $name, $current"
    SUITE=$current "./$name.sh" || status=1
done
exit $status
