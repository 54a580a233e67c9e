#!/usr/bin/env bash
# Compose on Docker: a web server, an API and a database, from Debian's nginx, Python and PostgreSQL.
NEEDS_IMAGE=1
. "$(dirname "$0")/docker-lib.sh"

start_docker
ok "import a Debian image" 'docker import "$IMAGE" localhost/debian:12'
mkdir "$work/shop" && cd "$work/shop" || exit 1
mkdir web api
cat >web/nginx.conf <<'C'
error_log stderr;
events {}
http {
    resolver 127.0.0.11 valid=1s;
    server {
        listen 80;
        location / { set $api http://api:8000; proxy_pass $api; }
        location = /well { return 200 "well\n"; }
    }
}
C
cat >web/Dockerfile <<'C'
FROM localhost/debian:12
COPY nginx.conf /etc/nginx/nginx.conf
CMD ["nginx", "-g", "daemon off;"]
C
cat >api/server.py <<'C'
import http.server, socket, psycopg2

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with psycopg2.connect(host="db", user="shop", dbname="shop") as base, base.cursor() as cursor:
            cursor.execute("create table if not exists visits (path text); insert into visits values (%s); select count(*) from visits", (self.path,))
            text = f"{cursor.fetchone()[0]} {socket.gethostname()}\n".encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
C
cat >api/Dockerfile <<'C'
FROM localhost/debian:12
COPY server.py /srv/
USER nobody
CMD ["python3", "-u", "/srv/server.py"]
C
mkdir db
cat >db/Dockerfile <<'C'
FROM localhost/debian:12
RUN install -d -o postgres /data /run/postgresql
USER postgres
ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin PGDATA=/data/main
VOLUME /data
CMD ["sh", "-ec", "[ -e $PGDATA ] || { initdb -A trust -N; echo 'host all all all trust' >>$PGDATA/pg_hba.conf; (echo 'create role shop login'; echo 'create database shop owner shop') | postgres --single postgres; }; exec postgres -c listen_addresses='*'"]
C
cat >docker-compose.yml <<'C'
version: "2.4"
services:
  web:
    build: web
    ports: ["127.0.0.1:8080:80"]
    networks: [front]
    depends_on: [api]
    healthcheck: {test: ["CMD", "nginx", "-t"], interval: 1s}
  api:
    build: api
    networks: [front, back]
    depends_on: {db: {condition: service_healthy}}
    restart: always
    mem_limit: 128m
  db:
    build: db
    networks: [back]
    volumes: ["data:/data"]
    shm_size: 64m
    healthcheck: {test: ["CMD", "pg_isready", "-h", "127.0.0.1", "-U", "shop"], interval: 1s, retries: 60}
networks: {front: {}, back: {internal: true}}
volumes: {data: {}}
C
compose() { if command -v docker-compose >/dev/null; then docker-compose "$@"; else docker compose "$@"; fi; }
page() { python3 -c 'import urllib.request as r; print(r.urlopen("http://127.0.0.1:8080/", timeout=5).read().decode(), end="")'; }
container() { docker ps -q --filter "label=com.docker.compose.service=$1"; }
number() { [ "$(container "$1" | wc -l)" = "$2" ]; }

ok "build" 'compose build'
ok "up, each after what it depends on" 'compose up -d'
ok "the database is healthy" 'healthy "$(container db)"'
eventually page
prints "web, API and database together" "2" 'eventually page; docker exec "$(container db)" psql -q -U shop -At -c "select count(*) >= 1, 2" shop | grep -q ^t && echo 2'
ok "logs" 'compose logs db | grep -q "ready to accept connections"'
prints "exec" "nobody" 'compose exec -T api id -un'
exits "the database is not on the web's network" 1 "" 'docker exec "$(container web)" getent hosts db >/dev/null || exit 1'
ok "scale" 'compose up -d --no-recreate --scale api=3 && eventually number api 3'
several() { for n in $(seq 20); do page; done | cut -d " " -f 2 | sort -u | grep -c . | grep -qx 3; }
ok "each of the three answers" 'eventually several'
ok "scale down" 'compose up -d --no-recreate --scale api=1 && eventually number api 1'
ok "restart" 'compose restart -t 2 api && eventually page'
ok "an API that dies is restarted" 'kill -9 "$(docker inspect --format "{{.State.Pid}}" "$(container api)")" && eventually page'
before=$(page | cut -d ' ' -f 1)
ok "down keeps the volume" 'compose down -t 2 && ! [ "$(docker ps -aq)" ] && docker volume ls -q | grep -q data'
ok "up again" 'compose up -d && eventually page'
ok "the data is there" '[ "$(page | cut -d " " -f 1)" -gt "${before:-none}" ]'
ok "one command in a new container" 'compose run --rm --no-deps -T api python3 -c "import psycopg2"'
ok "pause and unpause" 'compose pause db && compose unpause db && eventually page'
ok "down with volumes" 'compose down -t 2 --volumes && ! [ "$(docker volume ls -q)" ] && ! [ "$(docker network ls -q --filter name=shop)" ]'
stop_docker
cd / || exit 1
nothing_left
finish
