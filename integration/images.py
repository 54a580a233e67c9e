"""images.py BUSYBOX REGISTRY: makes the images that critest and the kubelet's pods name, from
Debian's own programs, and pushes them to the registry at that address (http, the plain
distribution API). A server finds them under their own names by mirrors (cri-lib.sh).
BUSYBOX is the shared one: the shell of busybox-static runs its own applets, whatever PATH and masks say.
images.py --static BUSYBOX REGISTRY: makes and pushes STATIC alone, of a static busybox, as the published one is.
images.py --digest: prints the digest of the one image that critest names by a digest.
"""

import re
import subprocess
import sys
import tarfile
import urllib.request

from image import MANIFEST, Image, architecture, base, layer

PGREP = """#!/bin/sh
for comm in /proc/[0-9]*/comm; do
    read -r name <"$comm" 2>/dev/null && [ "$name" = "$1" ] && pid=${comm#/proc/} && echo "${pid%/comm}" && found=1
done
[ "$found" ]
"""
IPCS = "#!/bin/sh\nexec cat /proc/sysvipc/shm\n"

# What is measured with: the C library's loader takes longer than the rest of a probe.
STATIC = "e2e-test-images/busybox-static:1"

# Tells its effective user, as a set-user-id program: busybox drops what it is raised to, this shell need not.
RAISED = "/bin/dash"
EFFECTIVE = """while read -r key _ effective _; do [ "$key" != Uid: ] || echo "Effective uid: $effective"; done </proc/$$/status
"""

# A server with a master that bears its name, writes a pid file and ends on a signal. The last
# argument is the port.
SERVER = """#!/bin/sh
for port; do :; done
mkdir -p /var/run && echo $$ >/var/run/${0##*/}.pid
echo "${0##*/}: serving on port $port"
/bin/busybox httpd -f -p "$port" -h /srv &
trap 'kill $!; exit 0' TERM INT QUIT
wait
"""


def libraries(*programs):
    """The entries of the shared libraries that programs of this machine need."""
    paths = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        paths.update(re.findall(r"(/\S+) \(0x", listed))
    folders = sorted({folder for path in paths for folder in parents(path)})
    return [dict(name=folder, kind=tarfile.DIRTYPE) for folder in folders] + [program_file(path[1:], path) for path in sorted(paths)]


def program_file(name, path, mode=0o755):
    with open(path, "rb") as file:
        return dict(name=name, data=file.read(), mode=mode)


def parents(path):
    """The folders above a path, from the top, without a leading slash."""
    parts = path.strip("/").split("/")[:-1]
    return ["/".join(parts[:n + 1]) for n in range(len(parts))]


def users():
    return [dict(name="etc/passwd", mode=0o644, data=b"root:x:0:0:root:/root:/bin/sh\n"
                 b"www-data:x:33:33:www-data:/var/www:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n"
                 b"nobody:x:65534:65534:nobody:/:/bin/sh\n"),
            dict(name="etc/group", mode=0o644, data=b"root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\n"
                 b"group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n")]


def named_by_digest():
    """The image that critest names by a digest. It is never run: one file, the same everywhere."""
    return Image([layer([dict(name="hello", data=b"hello\n", mode=0o644)])], {"Cmd": ["/hello"]})


def images(busybox):
    """Every image: a list of its names (host and path, with the tag) and its Image."""
    system = layer([file for file in base(busybox) if not file["name"].startswith("etc/")] + libraries(busybox, RAISED) + users() + [
        dict(name="usr", kind=tarfile.DIRTYPE), dict(name="usr/bin", kind=tarfile.DIRTYPE),
        dict(name="usr/bin/pgrep", data=PGREP.encode()), dict(name="usr/bin/ipcs", data=IPCS.encode())])
    page = [dict(name="srv", kind=tarfile.DIRTYPE),
            dict(name="srv/index.html", data=b"<title>Welcome</title>\n", mode=0o644)]

    def make(label, more=(), **config):
        config = {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/bin"], "Labels": {"name": label}} | config
        return Image([system] + ([layer(more)] if more else []), config, compress=True)

    def server(name, port):
        return make(f"{name}-{port}", [dict(name="usr/sbin", kind=tarfile.DIRTYPE), dict(name=f"usr/sbin/{name}", data=SERVER.encode())] + page,
                    Entrypoint=[f"/usr/sbin/{name}"], Cmd=["master process", str(port)])

    e2e, tools = "e2e-test-images/", "k8s-staging-cri-tools/"
    raised = [program_file("usr/bin/raised", RAISED, 0o4755), dict(name="run.sh", data=EFFECTIVE.encode())]
    # What a server keeps a pod's namespaces with. Not sleep: critest looks for that.
    wait = {"Cmd": ["/bin/tail", "-f", "/dev/null"]}
    made = [
        ([e2e + "busybox:1.29-2"], make("busybox")),
        ([e2e + "nginx:1.14-2"], server("nginx", 80)),
        ([tools + f"hostnet-nginx-{architecture()}:latest"], server("nginx", 12003)),
        ([e2e + "httpd:2.4.39-4"], server("httpd", 80)),
        ([e2e + "nonewprivs:1.3"], make("nonewprivs", raised, Cmd=["/usr/bin/raised", "-p", "/run.sh"])),
        ([tools + f"test-image-tags:{n}" for n in (1, 2, 3)], make("tags")),
        ([tools + "test-image-tag:test"], make("test")),
        ([tools + "test-image-tag:all"], make("all")),
        ([tools + "test-image-latest:latest"], make("latest")),
        ([tools + "test-image-digest:latest"], named_by_digest()),
        (["pause:3.9"], make("pause", **wait)),
        (["pause:3.10"], make("sandbox", **wait)),
        ([tools + "test-image-predefined-group:latest"], make("group", User="1000")),
    ]
    made += [([tools + f"test-image-{n}:latest"], make(f"image-{n}")) for n in (1, 2, 3)]
    made += [([tools + f"test-image-user-{name}:latest"], make(name, User=user)) for name, user in [
        ("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:1004"), ("username-group", "www-data:www-data")]]
    made += [([f"docker/library/busybox:{tag}"], make(tag)) for tag in ("1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl")]
    return made


def send(method, url, data=None, kind="application/octet-stream"):
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": kind})
    with urllib.request.urlopen(request) as answer:
        return answer.headers


def push(registry, names, image):
    repository = names[0].rsplit(":", 1)[0]
    at = f"http://{registry}/v2/{repository}"
    for digest, data in image.blobs.items():
        if digest == image.manifest["digest"]:
            continue
        place = send("POST", f"{at}/blobs/uploads/", b"")["Location"]
        send("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", data)
    for name in names:
        send("PUT", f"{at}/manifests/{name.rsplit(':', 1)[1]}", image.blobs[image.manifest["digest"]], MANIFEST)


if __name__ == "__main__":
    if sys.argv[1:] == ["--digest"]:
        print(named_by_digest().manifest["digest"])
    elif sys.argv[1] == "--static":
        push(sys.argv[3], [STATIC], Image([layer(base(sys.argv[2]))], {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}, compress=True))
    else:
        for names, image in images(sys.argv[1]):
            push(sys.argv[2], names, image)
