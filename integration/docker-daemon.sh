#!/usr/bin/env bash
# Docker: user namespaces by userns-remap; the daemon killed in the middle of operations finds its containers again.
. "$(dirname "$0")/docker-lib.sh"
chmod 711 "$work"

echo daemon:100000:65536 >"$work/subids"
touch /etc/subuid /etc/subgid
mount --bind "$work/subids" /etc/subuid && mount --bind "$work/subids" /etc/subgid
start_docker --userns-remap daemon
ok "userns: load an image" 'docker load --input "$work/image.tar"'
prints "userns: root is another on the host" "0 100000 65536" 'docker run --rm $box sh -c "tr -s \" \" </proc/self/uid_map | sed \"s/^ //\""'
ok "userns: run detached" 'run box-a -d --memory 32m $box sleep 1000'
prints "userns: its owner on the host" "100000" 'stat -c %u "/proc/$(pid box-a)"'
prints "userns: exec" "0" 'docker exec box-a id -u'
prints "userns: a volume" "kept 0" 'docker run --rm -v vol:/v $box sh -c "echo kept >/v/f; echo \$(cat /v/f) \$(stat -c %u /v/f)"'
exits "userns: a file of the host's root" 1 "ermission denied" 'touch "$work/secret" && chmod 600 "$work/secret" && docker run --rm -v "$work/secret:/secret" $box cat /secret'
prints "userns: terminal" "33 99" 'terminal "" "docker run --rm -it $box sh -c \"sleep 1; stty size\""'
exits "userns: server and client on the bridge" 0 "page" 'run box-b -d $box sh -c "mkdir /w; echo page >/w/index.html; httpd -f -p 80 -h /w" && docker run --rm --network container:box-b $box wget -q -O - http://127.0.0.1/'
prints "userns: off for one container" "0 0" 'docker run --rm --userns host $box sh -c "tr -s \" \" </proc/self/uid_map | sed \"s/^ //\" | cut -d \" \" -f 1,2"'
ok "userns: remove" 'docker rm -f box-a box-b'
stop_docker
umount /etc/subuid /etc/subgid

# What a client asks for meanwhile: containers that come, run programs, change, and go.
work_on() {
    local n
    for n in $(seq 100); do
        run "many-$1-$n" -d $box sleep 1000
        docker exec "many-$1-$n" true
        docker pause "many-$1-$n"
        docker unpause "many-$1-$n"
        [ $((n % 2)) = 0 ] || docker rm -f "many-$1-$n"
    done
}
start_docker
docker load --input "$work/image.tar" >/dev/null
for round in 1 2 3 4; do
    (work_on "$round" >/dev/null 2>&1) &
    worker=$!
    # From here on, the moment is any. This one has started: what the daemon is just starting as it dies it forgets (below).
    eventually docker exec "many-$round-2" true
    sleep "0.$((RANDOM % 90 + 10))"
    kill -9 "$daemon"
    kill "$worker"
    wait "$daemon" "$worker" 2>/dev/null
    start_docker
    ok "killed, round $round: what it had can be listed" 'docker inspect many-$round-2'
    ok "killed, round $round: a container starts again" 'docker start many-$round-2 && docker exec many-$round-2 true'
    ok "killed, round $round: all can be removed" 'docker rm -f $(docker ps -aq)'
done
prints "killed: no container is left" "" 'docker ps -aq'
stop_docker
# What Docker 20.10 had asked for and had not yet noted down when it died, it and its shim forget, whichever the runtime is
# (runc leaves the same). The runtime does not: it lists and removes them.
for shim in $(ps -e -o pid=,args= | awk '/[c]ontainerd-shim-runc-v2/ { print $1 }'); do kill -9 "$shim"; done
state=$work/state/runtime-rrun/moby
[ -d "$state" ] || state=$work/state/runtime-runc/moby
ok "killed: what the engine forgot the runtime removes" 'for id in $("$RRUN" --root "$state" list -q); do "$RRUN" --root "$state" delete --force "$id" || exit; done'
umount "$work/root" 2>/dev/null # bound by the daemon, left by a killed one
nothing_left
finish
