#!/usr/bin/env bash
# Docker builds a multi-stage Dockerfile with RUN steps, by its classic builder and by BuildKit, and the result goes
# through a registry; then what a first-time user tries with a Debian image.
NEEDS_IMAGE=1
. "$(dirname "$0")/docker-lib.sh"

start_docker
registry=127.0.0.1:5000
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "%s"}\n' "$work/registry" $registry >"$work/registry.yml"
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
server=$!
eventually bash -c ': </dev/tcp/${registry/://}' || fail "the registry starts" "$work/registry.log"
ok "import a Debian image" 'docker import "$IMAGE" localhost/debian:12'

mkdir "$work/context"
cat >"$work/context/hello.c" <<'C'
#include <stdio.h>
int main(void) { puts("hello from a build"); return 0; }
C
cat >"$work/context/Dockerfile" <<'C'
FROM localhost/debian:12 AS build
ARG LEVEL=1
WORKDIR /src
COPY hello.c .
RUN tcc -o hello hello.c && ./hello >built.txt
RUN test "$(id -u)" = 0 && echo "level $LEVEL" >>built.txt && touch owned && chown www-data owned
USER www-data
RUN test -O owned && test "$(id -un)" = www-data

FROM localhost/debian:12
COPY --from=build /src/hello /src/built.txt /usr/local/bin/
RUN ["/bin/bash", "-c", "set -o pipefail; hello | tr a-z A-Z >/etc/greeting"]
CMD ["cat", "/etc/greeting", "/usr/local/bin/built.txt"]
C
# build KIND: with the builder of that kind (0: the classic one, 1: BuildKit)
build() { DOCKER_BUILDKIT=$1 docker build --build-arg "LEVEL=$2" --tag "$registry/hello:$2" "$work/context"; }
expected() { printf 'HELLO FROM A BUILD\nhello from a build\nlevel %s' "$1"; }
for kind in 0 1; do
    if [ $kind = 1 ]; then name="BuildKit"; else name="classic builder"; fi
    ok "$name: build" "build $kind $kind"
    prints "$name: what it made runs" "$(expected $kind)" "docker run --rm $registry/hello:$kind"
    ok "$name: push" "docker push $registry/hello:$kind"
    ok "$name: remove it here" "docker rmi $registry/hello:$kind"
    prints "$name: pull and run" "$(expected $kind)" "docker run --rm --pull always --quiet $registry/hello:$kind 2>/dev/null || docker run --rm $registry/hello:$kind 2>/dev/null"
    printf 'FROM localhost/debian:12\nRUN exit 3\n' >"$work/context/failing"
    exits "$name: a step that fails tells its status" $((kind ? 1 : 3)) "3" "DOCKER_BUILDKIT=$kind docker build --file $work/context/failing $work/context"
done
prints "commit keeps a change" "changed" 'run box-e localhost/debian:12 sh -c "echo changed >/etc/motd" && docker commit box-e localhost/changed >/dev/null && docker rm box-e >/dev/null && docker run --rm localhost/changed cat /etc/motd | tail -1'
exits "bash on a terminal" 4 "/tmp 44 99" 'terminal "sleep 1; cd /tmp\necho \$PWD \$(stty size); exit 4\n" "docker run -it --rm localhost/debian:12 bash"'
prints "ps in the container" "1 ps" 'docker run --rm localhost/debian:12 ps -e -o pid=,comm= | tr -s " " | sed "s/^ //"'
ok "the package manager" 'docker run --rm localhost/debian:12 sh -c "dpkg --audit && apt-get check"'
prints "cp in and out" "from-host" 'run box-f -d localhost/debian:12 sleep 1000 >/dev/null; echo from-host >"$work/in"; docker cp "$work/in" box-f:/tmp/in >/dev/null && docker cp box-f:/tmp/in - | tar -xO'
ok "diff" 'docker diff box-f | grep -q "A /tmp/in"'
ok "remove" 'docker rm -f box-f'
kill "$server"
stop_docker
nothing_left
finish
