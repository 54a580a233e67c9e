#!/usr/bin/env bash
# Swarm on Docker, a manager that is its own worker: services of several replicas, their updates, and what fails.
. "$(dirname "$0")/docker-lib.sh"

# The address that the node is known by.
ip link add node type bridge && ip address add 192.0.2.1/24 dev node && ip link set node up || exit 1
start_docker
ok "load an image" 'docker load --input "$work/image.tar"'
for version in 1 2; do
    docker run --name made $box sh -c "mkdir /w; echo version $version >/w/index.html" && docker commit made localhost/app:$version && docker rm made
done >/dev/null
ok "init" 'docker swarm init --advertise-addr 192.0.2.1 --listen-addr 192.0.2.1'
prints "the node" "Ready Active Leader" 'docker node ls --format "{{.Status}} {{.Availability}} {{.ManagerStatus}}"'
ok "a network of services" 'docker network create --driver overlay --attachable shop'

# service NAME OPTION... IMAGE COMMAND...: with names that lead to its tasks, for a virtual address is the kernel's IPVS
service() { timeout 50 docker service create --quiet --no-resolve-image --stop-grace-period 1s --endpoint-mode dnsrr --network shop --name "$@"; }
change() { timeout 50 docker service update --quiet --no-resolve-image "$@"; }
tasks() { docker ps --quiet --filter "label=com.docker.swarm.service.name=$1"; }
# running NAME NUMBER: so many of its tasks run, by the manager's word and by the engine's
running() { [ "$(docker service ls --filter "name=$1" --format '{{.Replicas}}')" = "$2/$2" ] && [ "$(tasks "$1" | wc -l)" = "$2" ]; }
update() { [ "$(docker service inspect --format '{{.UpdateStatus.State}}' web)" = "$1" ]; }
image_of() { docker inspect --format '{{.Config.Image}}' $(tasks "$1") | sort | uniq -c | tr -s ' '; }
# asks COMMAND: in a container that is on the services' network all along
asks() { docker exec client "$@"; }
answers() { for n in $(tasks web); do asks wget -q -O - "http://$(docker inspect --format '{{.NetworkSettings.Networks.shop.IPAddress}}' "$n")/"; done | sort | uniq -c | tr -s ' '; }

ok "a service of three replicas" 'service web --replicas 3 --update-monitor 1s --rollback-monitor 1s --update-failure-action rollback localhost/app:1 httpd -f -p 80 -h /w && eventually running web 3'
prints "the runtime of its tasks" "rrun" 'docker inspect --format "{{.HostConfig.Runtime}}" $(tasks web) | sort -u'
ok "a container joins their network" 'run client -d --network shop $box sleep 1000'
prints "one name, three addresses" "3" 'asks nslookup web 127.0.0.11 | grep "^Address" | grep -vc 127.0.0.11'
ok "and the name leads to a server" 'asks wget -q -O - http://web/ | grep -qx "version 1"'
prints "every task answers" " 3 version 1" 'answers'
ok "logs" 'docker service logs web'
victim=$(tasks web | head -n 1)
ok "a killed task is replaced" 'kill -9 "$(pid "$victim")" && eventually is "$victim" exited && eventually running web 3 && ! tasks web | grep -q "$victim"'
prints "and its end is told" "1" 'docker service ps web --filter desired-state=shutdown --format "{{.Error}}" | grep -c "non-zero exit (137)"'
victim=$(tasks web | head -n 1)
ok "a removed task is replaced" 'docker rm -f "$victim" && eventually running web 3 && ! tasks web | grep -q "$victim"'
ok "rolling update" 'change web --image localhost/app:2 --update-parallelism 1 && eventually update completed && eventually running web 3'
prints "every task is new" " 3 version 2" 'answers'
ok "rollback" 'timeout 50 docker service rollback --quiet web && eventually update rollback_completed && eventually running web 3'
prints "every task is the old one" " 3 version 1" 'answers'
ok "an update that fails is taken back" 'change web --detach --image localhost/app:2 --args "no-such-program"; eventually update rollback_completed && eventually running web 3'
prints "with the tasks that there were" " 3 localhost/app:1" 'image_of web'
ok "scale up" 'timeout 50 docker service scale web=5 && eventually running web 5'
ok "scale down" 'timeout 50 docker service scale web=1 && eventually running web 1'

echo topsecret | docker secret create word - >/dev/null
echo setting | docker config create settings - >/dev/null
ok "a service with limits, a secret, a configuration, a volume and a port of the host" 'service api --limit-memory 32m --limit-pids 50 --secret word --config source=settings,target=/etc/settings --mount type=volume,source=data,target=/data \
    --publish mode=host,published=8080,target=80 --health-cmd "test -e /w/well" --health-interval 0.2s --user 0 --hostname "{{.Service.Name}}-{{.Task.Slot}}" --init \
    localhost/app:1 sh -c "cat /run/secrets/word /etc/settings >/w/well; touch /data/x; hostname >>/w/well; exec httpd -f -p 80 -h /w" && eventually running api 1'
prints "what it was given" "topsecret setting api-1" 'docker exec "$(tasks api)" cat /w/well | paste -sd " "'
prints "its memory limit" "33554432" 'limit "$(pid "$(tasks api)")" memory memory.limit_in_bytes memory.max'
prints "its port on the host" "version 1" 'busybox wget -q -O - http://192.0.2.1:8080/'
ok "a service that is unwell is replaced" 'before=$(tasks api) && docker exec "$before" rm /w/well && eventually bash -c "! tasks api | grep -q $before" && eventually running api 1'
ok "one on every node" 'service every --mode global localhost/app:1 sleep 1000 && eventually running every 1'
ok "a job that ends" 'service job --mode replicated-job --restart-condition none localhost/app:1 true && docker service ps job --format "{{.CurrentState}}" | grep -q Complete'

if [ -e /proc/net/ip_vs ]; then
    ok "a virtual address, and the port of every node" 'timeout 50 docker service create --quiet --no-resolve-image --name mesh --network shop --replicas 2 --publish published=8081,target=80 localhost/app:1 httpd -f -p 80 -h /w && eventually busybox wget -q -O - http://192.0.2.1:8081/'
else
    skip "a virtual address, and the port of every node" "the kernel has no IPVS (CONFIG_IP_VS)"
fi

ok "drained, the node keeps none" 'docker node update --availability drain "$(docker node ls -q)" && eventually bash -c "[ -z \"\$(tasks web)\$(tasks api)\$(tasks every)\" ]"'
ok "and active again, it gets them back" 'docker node update --availability active "$(docker node ls -q)" && eventually running web 1 && eventually running api 1 && eventually running every 1'
kill -9 "$daemon"
wait "$daemon" 2>/dev/null
start_docker
ok "dockerd is killed and started: the services are there" 'eventually running web 1 && eventually running api 1'
ok "remove the services" 'docker service rm $(docker service ls -q) && eventually bash -c "[ -z \"\$(tasks web)\$(tasks api)\$(tasks every)\" ]"'

cat >"$work/stack.yml" <<'C'
version: "3.8"
services:
  front: {image: "localhost/app:2", stop_grace_period: 1s, command: [httpd, -f, -p, "80", -h, /w], deploy: {replicas: 2, endpoint_mode: dnsrr}, networks: [back]}
  behind: {image: "localhost/app:1", stop_grace_period: 1s, command: [sleep, "1000"], deploy: {endpoint_mode: dnsrr}, networks: [back]}
networks: {back: {}}
C
ok "a stack of two services" 'docker stack deploy --resolve-image never --compose-file "$work/stack.yml" pair && eventually running pair_front 2 && eventually running pair_behind 1'
prints "one asks the other" "version 2" 'docker exec "$(tasks pair_behind)" wget -q -O - http://front/'
ok "remove the stack" 'docker stack rm pair && eventually bash -c "[ -z \"\$(tasks pair_front)\$(tasks pair_behind)\" ]"'
ok "leave" 'docker rm -f client && docker swarm leave --force'
ok "what had ended is removed" 'docker container prune --force' # the engine keeps it
prints "no container is left" "" 'docker ps -aq'
stop_docker
umount "$work/root" 2>/dev/null # bound by the daemon, left by a killed one
nothing_left
finish
