#!/usr/bin/env bash
# rrun-cri's pulls beside containerd's, taking turns: an image of 500 MB in eight layers of Debian packages and one of 200 small
# layers, from Debian's docker-registry on loopback, with an empty store and dropped caches each time. `make bench-images` runs
# it; TIMES=3 is how often, REPORT= keeps docs/performance.md as it is. Not for a busy machine.
NEEDS="crictl containerd"
here=$(cd "$(dirname "$0")" && pwd)
cache=${here%/*}/.cache/bench-images
# Outside, where the network is.
[ -n "${RRUN_INTEGRATION:-}" ] || [ -e "$cache/.complete" ] || python3 "$here/bench_images.py" fetch "$cache/packages" || exit 1
. "$here/cri-lib.sh"

printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "%s"}\n' "$cache/registry" $registry >"$work/registry.yml"
"$CLIENT_registry" serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
eventually bash -c ': </dev/tcp/${registry/://}' || { fail "the registry starts" "$work/registry.log"; finish; exit 1; }
if ! [ -e "$cache/.complete" ]; then
    python3 "$here/bench_images.py" make $registry "$cache/packages" && touch "$cache/.complete" || exit 1
fi

# Each becomes a server with all its defaults but for where it keeps and says things.
cat >"$work/containerd" <<'C'
printf 'version = 3\nroot = "%s/root"\nstate = "%s/state"\n[grpc]\naddress = "%s"\n' "$1" "$1" "$2" >"$1/settings.toml"
PATH=${CLIENT_containerd%/*}:$PATH exec "$CLIENT_containerd" --config "$1/settings.toml"
C
cat >"$work/rrun-cri" <<'C'
printf 'root = "%s/root"\nstate = "%s/state"\nsocket = "%s"\nmonitor = "%s/rrun-monitor"\n[runtimes.rrun]\npath = "%s"\n' "$1" "$1" "$2" "${RRUN_CRI%/*}" "$RRUN" >"$1/settings.toml"
exec "$RRUN_CRI" --config "$1/settings.toml"
C
python3 "$here/bench_images.py" run $registry "${TIMES:-3}" "${REPORT-${here%/*}/docs/performance.md}" \
    "rrun-cri=bash $work/rrun-cri" "containerd=bash $work/containerd"
