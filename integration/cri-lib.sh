# What the scripts share that drive a CRI server: critest.sh, crictl.sh, kubelet.sh. They set NEEDS to
# the clients that they want, WANTS to those that they can do without, and read this file; it reads lib.sh. The server is bin/rrun-cri;
# SERVER=containerd tries a script itself on containerd. Before the namespaces are entered, where the
# network still is, `clients` fetches and builds. Inside, /run, /var and the cgroups are the script's own.
# CGROUP_DRIVER=systemd wants the process ids that systemd knows: BARE=1, on a machine that is thrown away.
# shellcheck shell=bash
NEEDS="$NEEDS busybox cni registry"
SERVER=${SERVER:-rrun-cri}
OWN_CGROUPS=1

if [ -z "${RRUN_INTEGRATION:-}" ] && [ "$(id -u)" = 0 ]; then
    top=$(cd "$(dirname "$0")/.." && pwd)
    [ "$SERVER" != containerd ] || NEEDS="$NEEDS containerd runc"
    # shellcheck disable=SC2086 # a list of words
    got=$("$top/integration/clients" "$top/.cache/clients" $NEEDS ${WANTS:-})
    for name in $NEEDS ${WANTS:-}; do
        path=$(sed -n "s/^$name=//p" <<<"$got")
        if [ -z "$path" ] && [[ " $NEEDS " = *" $name "* ]]; then
            echo "SKIP ${0##*/}: no $name, see above"
            echo "0 passed, 0 failed, 1 skipped"
            exit 0
        fi
        export "CLIENT_${name//-/_}=$path"
    done
fi
export OWN_CGROUPS SERVER
. "$(dirname "$0")/lib.sh"

chmod 711 "$work" # pods with a user namespace pass
mkdir "$work"/{var,var-work,tmp,cni,certs}
if [ -z "${BARE:-}" ]; then
    own_cgroups
    mount -t tmpfs -o mode=755 none /run
    mount -t overlay -o "lowerdir=/var,upperdir=$work/var,workdir=$work/var-work" none /var
    mkdir -p /run/netns /run/lock
fi
TMPDIR=$work/tmp
[ -z "${KEEP:-}" ] || trap 'cp "$work"/*.{log,json,toml} "$KEEP" 2>/dev/null' EXIT
endpoint=unix://$work/cri.sock
registry=127.0.0.1:5000
RRUN_CRI=${RRUN_CRI:-${RRUN%/*}/rrun-cri}

# What the portmap plugin asks of the kernel.
HOST_PORTS=
{ iptables -t nat -N rrun-it && iptables -t nat -A rrun-it -p tcp -m multiport --dports 1 -j RETURN; } 2>/dev/null && HOST_PORTS=1
iptables -t nat -F rrun-it && iptables -t nat -X rrun-it

# crictl ARGUMENT...: the client, on the server of this script
crictl() { "$CLIENT_crictl" --config "$work/crictl.yaml" "$@"; }
printf 'runtime-endpoint: %s\nimage-endpoint: %s\ntimeout: 60\n' "$endpoint" "$endpoint" >"$work/crictl.yaml"

# place_criu: the client criu, where the server's monitors look for programs first; fails where it cannot work
place_criu() {
    if [ -n "${CLIENT_criu:-}" ]; then
        mkdir "$work/sbin" && ln -s "$CLIENT_criu" "$work/sbin/criu"
        mount -t overlay -o "lowerdir=$work/sbin:/usr/local/sbin" none /usr/local/sbin
        PATH=/usr/local/sbin:$PATH
    fi
    ! no_criu
}

# start_registry: Debian's docker-registry, with the images that the clients name, and mirrors to it
start_registry() {
    local host
    printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "%s"}\n' "$work/registry" $registry >"$work/registry.yml"
    "$CLIENT_registry" serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
    eventually bash -c ': </dev/tcp/${registry/://}' || { fail "the registry starts" "$work/registry.log"; finish; exit; }
    python3 "$here/images.py" "$CLIENT_busybox" $registry || exit 1
    for host in registry.k8s.io k8s.gcr.io gcr.io public.ecr.aws; do
        mkdir "$work/certs/$host"
        printf 'server = "https://%s"\n[host."http://%s"]\ncapabilities = ["pull", "resolve"]\n' $host $registry >"$work/certs/$host/hosts.toml"
    done
}

# start_server: the CRI server, with a bridge network, at $endpoint; $server is its pid
start_server() {
    cat >"$work/cni/10-bridge.conflist" <<C
{"cniVersion": "1.0.0", "name": "rrun-it", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true,
   "ipam": {"type": "host-local", "dataDir": "$work/addresses", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}
  $([ -z "$HOST_PORTS" ] || echo ', {"type": "portmap", "capabilities": {"portMappings": true}}')]}
C
    "start_${SERVER//-/_}"
    eventually crictl version || { fail "$SERVER starts" "$work/server.log"; finish; exit; }
}

start_containerd() {
    cat >"$work/server.toml" <<C
version = 3
root = "$work/server-root"
state = "$work/server-state"
[grpc]
address = "$work/cri.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "$work/certs"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "$CLIENT_runc"
SystemdCgroup = $([ "${CGROUP_DRIVER:-}" = systemd ] && echo true || echo false)
$([ -z "${CLIENT_crun:-}" ] || cat <<R
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
BinaryName = "$CLIENT_crun"
SystemdCgroup = $([ "${CGROUP_DRIVER:-}" = systemd ] && echo true || echo false)
R
)
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["$CLIENT_cni"]
conf_dir = "$work/cni"
[plugins.'io.containerd.nri.v1.nri']
disable = false
socket_path = "$work/nri.sock"
plugin_path = "$work/nri"
plugin_config_path = "$work/nri-config"
C
    PATH=${CLIENT_containerd%/*}:$PATH "$CLIENT_containerd" --config "$work/server.toml" >"$work/server.log" 2>&1 &
    server=$!
}

# The programs: $RRUN_CRI and rrun-monitor beside it. RUNTIME=PATH tries another OCI runtime than $RRUN.
start_rrun_cri() {
    cat >"$work/server.toml" <<C
root = "$work/server-root"
state = "$work/server-state"
socket = "$work/cri.sock"
monitor = "${RRUN_CRI%/*}/rrun-monitor"
cgroup_driver = "${CGROUP_DRIVER:-cgroupfs}"
log_level = "${LOG_LEVEL:-info}"
[runtimes.rrun]
path = "${RUNTIME:-$RRUN}"
[cni]
conf_dir = "$work/cni"
bin_dirs = ["$CLIENT_cni"]
[images]
registry_config_dirs = ["$work/certs"]
[nri]
socket = "$work/nri.sock"
plugin_dir = "$work/nri"
plugin_config_dir = "$work/nri-config"
$([ -z "${METRICS:-}" ] || printf '[metrics]\naddress = "%s"' "$METRICS")
$([ -z "${TRACES:-}" ] || printf '[tracing]\nendpoint = "%s"' "$TRACES")
C
    "$RRUN_CRI" --config "$work/server.toml" >"$work/server.log" 2>&1 &
    server=$!
}
