# What the scripts share that drive Docker: a daemon with rrun as its default runtime, in a network namespace with its own
# bridge, and the small image.
# shellcheck shell=bash
OWN_CGROUPS=1 NEEDS_CRIU=${NEEDS_CRIU:-}
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PATH=$CRIU/usr/sbin:/usr/bin:/sbin:/bin # the engine of Debian's package, not one of /usr/local
own_run
DOCKER_HOST=unix://$work/docker.sock
DOCKER_CONFIG=$work/docker-config
box=localhost/busybox:1
engine_files='^/run/(criu.kdat$|xtables.lock|docker/(plugins|swarm|libnetwork|netns)/|lock/|buildkit|containerd/|docker/(runtime|containerd))'
engine_cgroups='/(docker|buildkit)$'
mkdir "$work/docker-config" "$work/bin"
# BuildKit, in the daemon, runs what it finds by the name of runc.
ln -s "$RRUN" "$work/bin/runc"

# start_docker OPTION...: the daemon; $daemon is its pid
start_docker() {
    PATH=$work/bin:$PATH dockerd --data-root "$work/root" --exec-root "$work/state" --pidfile "$work/pid" --host "$DOCKER_HOST" \
        --add-runtime "rrun=$RRUN" --default-runtime rrun --iptables="${IPTABLES:-true}" --ip6tables=false "$@" >>"$work/log" 2>&1 &
    daemon=$!
    eventually docker version || eventually docker version || { fail "dockerd starts" "$work/log"; finish; exit; }
}

# stop_docker: the daemon, with its containerd
stop_docker() { kill "$daemon" && wait "$daemon" 2>/dev/null; }

run() { docker run --name "$1" "${@:2}"; }
pid() { docker inspect --format '{{.State.Pid}}' "$1"; }
status() { docker inspect --format '{{.State.Status}}' "$1"; }
is() { [ "$(status "$1")" = "$2" ]; }
healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]; }

image "$work/image.tar" || exit 1
