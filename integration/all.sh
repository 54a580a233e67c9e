#!/usr/bin/env bash
# all.sh [NAME...]: runs those clients' scripts, or all of them; `make integration`.
cd "$(dirname "$0")" || exit 1
[ $# != 0 ] || set -- $(ls ./*.sh | sed 's/^..//; s/\.sh$//' | grep -vE '^(all|.*lib|runc-bats|runtime-tools)$')
status=0
for name; do
    echo "=== $name"
    ./"$name.sh" || status=1
done
exit $status
