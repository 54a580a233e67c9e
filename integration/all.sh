#!/usr/bin/env bash
# Runs every client's script; `make integration`.
cd "$(dirname "$0")" || exit 1
status=0
for script in *.sh; do
    case $script in all.sh | *lib.sh) continue ;; esac
    echo "=== ${script%.sh}"
    ./"$script" || status=1
done
exit $status
