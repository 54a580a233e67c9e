#!/usr/bin/env bash
# A standalone kubelet, without an API server, with static pods. CRI v1 as a node uses it.
NEEDS="crictl kubelet"
WANTS=criu
. "$(dirname "$0")/cri-lib.sh"

# What the kubelet sets in the kernel it sets here in copies: no other name space keeps them from the machine.
for file in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    cat /proc/sys/$file >"$work/${file//\//.}"
    mount --bind "$work/${file//\//.}" /proc/sys/$file
done
# The node's address.
ip link add node0 type bridge && ip address add 192.0.2.1/24 dev node0 && ip link set node0 up && ip route add default via 192.0.2.254

place_criu >"$work/criu" && criu=yes

start_registry
start_server

mkdir "$work/pods"
cat >"$work/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: $work/pods
fileCheckFrequency: 1s
syncFrequency: 1s
containerRuntimeEndpoint: $endpoint
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
registerNode: false
podLogsDir: $work/logs
volumePluginDir: $work/plugins
clusterDNS: [10.9.9.9]
clusterDomain: cluster.test
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
crashLoopBackOff: {maxContainerRestartPeriod: 4s}
featureGates: {KubeletCrashLoopBackOffMax: true, PodAndContainerStatsFromCRI: true}
C
start_kubelet() {
    "$CLIENT_kubelet" --config "$work/kubelet.yaml" --root-dir "$work/kubelet" --cert-dir "$work/certificates" \
        --hostname-override node --node-ip 192.0.2.1 >>"$work/kubelet.log" 2>&1 &
    kubelet=$!
}

# ask PATH: the kubelet's answer; ask -post PATH with an empty body
ask() { python3 "$here/kubelet.py" "$@"; }
# pod NAME EXPRESSION: what a Python expression makes of the pod's status, with `pod`, `status`, and `c`,
# the container statuses by name
pod() { ask /pods | python3 "$here/kubelet.py" --pod "$1" "$2"; }
# becomes NAME EXPRESSION WANTED: waits up to a minute and a half
becomes() {
    local n got
    for n in $(seq 180); do
        got=$(pod "$1" "$2" 2>/dev/null)
        [ "$got" != "$3" ] || return 0
        sleep 0.5
    done
    echo "wanted $3, got $got"
    pod "$1" status
    return 1
}
# within NAME COMMAND: like ok, with two minutes for the command
within() { if timeout 120 bash -c "$2" </dev/null >"$work/output" 2>&1; then pass "$1"; else fail "$1" "$work/output"; fi; }

start_kubelet
healthy() { [ "$(ask /healthz)" = ok ]; }
within "the kubelet is healthy" 'for n in $(seq 100); do healthy && exit; sleep 0.5; done; tail -n 20 $work/kubelet.log; exit 1'

busybox=registry.k8s.io/e2e-test-images/busybox:1.29-2
# manifest NAME SPEC: a static pod
manifest() { printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: test}\nspec:\n%s\n' "$1" "$2" >"$work/$1.yaml" && mv "$work/$1.yaml" "$work/pods/"; }
manifest web "
  initContainers:
  - {name: first, image: $busybox, command: [sh, -c, echo page of the first >/data/index.html], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: sidecar, image: $busybox, command: [sh, -c, 'echo beside; sleep 1000'], restartPolicy: Always}
  containers:
  - name: server
    image: $busybox
    command: [sh, -c, 'echo serving; exec httpd -f -p 80 -h /data']
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    volumeMounts: [{name: data, mountPath: /data}]
    resources: {limits: {memory: 64Mi, cpu: 200m}}
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
    livenessProbe: {exec: {command: [cat, /data/index.html]}, periodSeconds: 1}
    lifecycle: {postStart: {exec: {command: [sh, -c, echo started >/data/started]}}}
  volumes: [{name: data, emptyDir: {medium: Memory}}]
  terminationGracePeriodSeconds: 2"
manifest crash "
  containers:
  - {name: bad, image: $busybox, command: [sh, -c, 'echo about to end; exit 3']}"
manifest probed "
  containers:
  - name: fading
    image: $busybox
    command: [sh, -c, 'touch /tmp/alive; sleep 4; rm /tmp/alive; sleep 1000']
    livenessProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}
  terminationGracePeriodSeconds: 1"
manifest once "
  restartPolicy: Never
  shareProcessNamespace: true
  containers:
  - {name: good, image: $busybox, command: [sh, -c, 'echo done; exit 0']}
  - {name: eaten, image: $busybox, command: [sh, -c, 'dd if=/dev/zero of=/dev/null bs=100M'], resources: {limits: {memory: 20Mi}}}"
manifest absent "
  containers:
  - {name: none, image: registry.k8s.io/no-such-image:1}"

within "a pod runs and is ready" 'becomes web "all(c[n][\"ready\"] for n in [\"server\"])" True'
within "its init container has ended" 'becomes web "c[\"first\"][\"state\"][\"terminated\"][\"exitCode\"]" 0'
within "its sidecar runs" 'becomes web "\"running\" in c[\"sidecar\"][\"state\"]" True'
address=$(pod web 'status["podIP"]')
prints "it serves what the init container left in the emptyDir" "page of the first" 'busybox wget -q -O - http://$address/'
prints "postStart" "started" 'ask -post "/run/test/web-node/server?cmd=cat%20/data/started"'
prints "environment with the pod's address, an exec through the kubelet" "$address" 'ask -post "/run/test/web-node/server?cmd=env" | sed -n s/^IP=//p'
prints "resolv.conf of the cluster" "search test.svc.cluster.test svc.cluster.test cluster.test nameserver 10.9.9.9 options ndots:5" 'echo $(ask -post "/run/test/web-node/server?cmd=cat%20/etc/resolv.conf")'
prints "hosts file of the kubelet" "web-node" 'ask -post "/run/test/web-node/server?cmd=cat%20/etc/hosts" | awk -v a=$address "\$1 == a { print \$2 }"'
prints "logs" "serving" 'ask /containerLogs/test/web-node/server'
pid=$(crictl inspect -o go-template --template '{{.info.pid}}' "$(crictl ps -q --name server)")
prints "memory limit" "67108864" 'limit "$pid" memory memory.limit_in_bytes memory.max'
ok "the pod's cgroup is the container's parent" 'grep -q "/kubepods/burstable/pod" /proc/$pid/cgroup'

within "a container that ends is started again, and backs off" 'becomes crash "c[\"bad\"][\"restartCount\"] >= 2" True && becomes crash "c[\"bad\"][\"state\"].get(\"waiting\", {}).get(\"reason\")" CrashLoopBackOff'
prints "how it ended" "3 Error" 'pod crash "\"%d %s\" % (c[\"bad\"][\"lastState\"][\"terminated\"][\"exitCode\"], c[\"bad\"][\"lastState\"][\"terminated\"][\"reason\"])"'
# Between a restart and the status that tells of it there is no log of the one that the status names.
within "the log of the previous one" 'until [ "$(ask "/containerLogs/test/crash-node/bad?previous=true")" = "about to end" ]; do sleep 0.5; done'
within "a failing liveness probe restarts its container" 'becomes probed "c[\"fading\"][\"restartCount\"] >= 1" True'
within "a pod that ends is failed or done" 'becomes once "status[\"phase\"]" Failed'
prints "what ended well" "0 Completed" 'pod once "\"%d %s\" % (c[\"good\"][\"state\"][\"terminated\"][\"exitCode\"], c[\"good\"][\"state\"][\"terminated\"][\"reason\"])"'
prints "what the kernel killed" "137 OOMKilled" 'pod once "\"%d %s\" % (c[\"eaten\"][\"state\"][\"terminated\"][\"exitCode\"], c[\"eaten\"][\"state\"][\"terminated\"][\"reason\"])"'
within "an image that is not there is told" 'becomes absent "c[\"none\"][\"state\"][\"waiting\"][\"reason\"] in (\"ErrImagePull\", \"ImagePullBackOff\")" True'

within "stats of the pod" 'for n in $(seq 40); do ask /stats/summary | python3 "$here/kubelet.py" --stats web 2>/dev/null && exit; sleep 1; done; ask /stats/summary | python3 "$here/kubelet.py" --stats web; exit 1'
ok "resource metrics" 'ask /metrics/resource | grep -q "container_memory_working_set_bytes{container=\"server\""'

if [ -n "${criu:-}" ]; then
    # The feature gate ContainerCheckpoint is on by default.
    ok "checkpoint" 'ask -post /checkpoint/test/web-node/server >$work/answer && archive=$(python3 -c "import json, sys; print(json.load(sys.stdin)[\"items\"][0])" <$work/answer) && tar -xOf "$archive" config.dump | grep -q busybox && busybox wget -q -O - http://$address/'
else
    skip "checkpoint" "$(<"$work/criu")"
fi

before=$(pod web 'c["server"]["containerID"]')
kill $kubelet && wait $kubelet 2>/dev/null
start_kubelet
within "after a restart of the kubelet" 'for n in $(seq 100); do healthy && exit; sleep 0.5; done; exit 1'
within "the container is the same" 'becomes web "c[\"server\"][\"containerID\"]" $before && becomes web "c[\"server\"][\"restartCount\"]" 0'

rm "$work"/pods/*
within "without their files the pods go" 'for n in $(seq 200); do [ -z "$(crictl pods -q)$(ls $work/kubelet/pods)" ] && exit; sleep 0.5; done; crictl pods; ls $work/kubelet/pods; exit 1'
prints "nothing is left" "" 'crictl ps -aq; ls /run/netns; ls $work/addresses/rrun-it | grep "^10"; grep "$work/kubelet/pods" /proc/mounts; find /sys/fs/cgroup -path "*/kubepods/*/pod*" -type d; true'
kill $kubelet "$server"
wait $kubelet "$server" 2>/dev/null
finish
