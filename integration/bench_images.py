"""What bench-images.sh makes its images and measures with.

bench_images.py fetch FOLDER            downloads the Debian packages
bench_images.py make REGISTRY FOLDER    makes images of them and pushes those (http, the distribution API)
bench_images.py run REGISTRY TIMES REPORT NAME=COMMAND...
    measures servers of CRI, taking turns: `COMMAND ROOT SOCKET` becomes one with its store in ROOT. REPORT: a file with the marks
    of the table, or nothing
"""

import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from image import MANIFEST, Image, layer
from images import push

# Eight layers of about 500 MB in all: one with thousands of small files, one that is a single large one.
LAYERS = [
    ["libc6", "coreutils", "bash", "dash", "dpkg", "apt", "perl-base", "libssl3", "openssl", "tar", "grep", "sed", "findutils"],
    ["python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libpython3.11"],
    ["perl-modules-5.36", "libperl5.36"],
    ["libllvm14"],
    ["cpp-12", "binutils-common"],
    ["libicu72"],
    ["vim-runtime", "libx11-data"],
    ["golang-1.19-src"],
]


def fetch(folder):
    os.makedirs(folder, exist_ok=True)
    there = {name.split("_")[0] for name in os.listdir(folder)}
    wanted = [package for packages in LAYERS for package in packages if package not in there]
    if wanted:
        subprocess.run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *wanted], cwd=folder, check=True, stdout=sys.stderr)


def tree(packages, folder):
    """The packages, unpacked: a tar archive's bytes."""
    root = tempfile.mkdtemp(dir=folder)
    for package in packages:
        found = next(name for name in os.listdir(folder) if name.startswith(package + "_"))
        subprocess.run(["dpkg-deb", "-x", found, root], cwd=folder, check=True)
    made = subprocess.run(["tar", "-C", root, "--sort=name", "--numeric-owner", "-c", "."], check=True, capture_output=True).stdout
    shutil.rmtree(root)
    return made


def small(number):
    """One of 200 layers: twenty files in three folders."""
    source = random.Random(number)
    return layer([dict(name=f"srv/{number}/{n % 3}/{n}", data=source.randbytes(source.randrange(200, 12000))) for n in range(20)])


def make(registry, folder):
    layers = [tree(packages, folder) for packages in LAYERS]
    config = {"Cmd": ["/bin/sh"]}
    changed = layer([dict(name="etc/changed", data=b"x" * 5000)])
    for name, parts in [("large", layers), ("next", layers[:7] + [changed]), ("small", [small(n) for n in range(200)])]:
        image = Image(parts, config, compress=True)
        push(registry, [f"bench/{name}:1"], image)
        sizes = dict(name=name, layers=len(parts), unpacked=sum(map(len, parts)), packed=sum(part["size"] for part in image.layers))
        print("bench/{name}: {layers} layers, {packed} bytes, {unpacked} as tar".format(**sizes), file=sys.stderr)


class Server:
    """A running server with an empty store."""

    def __init__(self, name, command, root):
        self.name, self.command, self.root = name, command, root
        self.start()

    def start(self):
        socket = f"{self.root}/cri.sock"
        self.process = subprocess.Popen(command_of(self.command, self.root, socket), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.crictl = [os.environ["CLIENT_crictl"], "--config", "/dev/null", "-r", f"unix://{socket}", "-i", f"unix://{socket}", "-t", "600s"]
        until = time.monotonic() + 30
        while subprocess.run(self.crictl + ["version"], capture_output=True).returncode:
            if time.monotonic() > until:
                sys.exit(f"bench-images: {self.name} does not start")
            time.sleep(0.05)

    def pull(self, image):
        return subprocess.Popen(self.crictl + ["pull", image], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def cpu(self):
        """Seconds of CPU of the server and of what it started and waited for."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def peak(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmHWM:\s*(\d+)", file.read())[1]) * 1024

    def reset_peak(self):
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as file:
            file.write("5")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.root)


def command_of(command, root, socket):
    return ["bash", "-c", f'exec {command} "$0" "$1"', root, socket]


def on_disk(root):
    return int(subprocess.run(["du", "-s", "--block-size=1", root], check=True, capture_output=True, text=True).stdout.split()[0])


def fetched():
    """Bytes over loopback: the registry's only, in a network of its own."""
    with open("/proc/net/dev") as file:
        return int(re.search(r"lo:\s*(\d+)", file.read())[1])


def drop_caches():
    subprocess.run(["sync"], check=True)
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def measured(server, image):
    drop_caches()
    server.reset_peak()
    cpu, bytes_before, disk, start = server.cpu(), fetched(), on_disk(server.root), time.monotonic()
    pull = server.pull(image)
    error = pull.communicate()[1]
    took = time.monotonic() - start
    if pull.returncode:
        sys.exit(f"bench-images: {server.name}: {error.decode()}")
    return dict(time=took, cpu=server.cpu() - cpu, memory=server.peak(), bytes=fetched() - bytes_before, disk=on_disk(server.root) - disk)


def interrupted(server, image, whole):
    """Bytes that a pull needs after its server was killed when nine tenths had come."""
    start = fetched()
    pull = server.pull(image)
    while fetched() - start < whole * 0.9:
        if pull.poll() is not None:
            sys.exit(f"bench-images: {server.name} was done before it was killed")
        time.sleep(0.001)
    server.kill()
    pull.communicate()
    came = fetched() - start
    server.start()
    start = fetched()
    if server.pull(image).wait():
        sys.exit(f"bench-images: {server.name} does not go on")
    return dict(came=came, rest=fetched() - start)


def size_of(registry, image):
    """What GNU tar makes of the layers, on this file system: the measure of `bytes on disk`."""
    import json
    import urllib.request
    def get(path, kind=""):
        return urllib.request.urlopen(urllib.request.Request(f"http://{registry}/v2/bench/{image}/{path}", headers={"Accept": kind})).read()
    with tempfile.TemporaryDirectory() as folder:
        for at, part in enumerate(json.loads(get("manifests/1", MANIFEST))["layers"]):
            os.mkdir(f"{folder}/{at}")
            subprocess.run(["tar", "-C", f"{folder}/{at}", "-xzf", "-"], input=get(f"blobs/{part['digest']}"), check=True)
        return on_disk(folder)


def run(registry, times, report, commands):
    servers = dict(word.split("=", 1) for word in commands)
    found = {name: {} for name in servers}
    image = f"{registry}/bench/%s:1"
    tar = {name: size_of(registry, name) for name in ("large", "small")}
    for turn in range(times):
        for name in random.sample(sorted(servers), len(servers)):
            for which in ("large", "small"):
                server = Server(name, servers[name], tempfile.mkdtemp(prefix=f"{name}-"))
                found[name].setdefault(which, []).append(measured(server, image % which))
                if which == "large":
                    found[name].setdefault("next", []).append(measured(server, image % "next"))
                server.end()
            server = Server(name, servers[name], tempfile.mkdtemp(prefix=f"{name}-"))
            whole = found[name]["large"][0]["bytes"]
            found[name].setdefault("killed", []).append(interrupted(server, image % "large", whole))
            server.end()
            print(f"turn {turn + 1} of {times}: {name}", {which: {k: round(v, 2) for k, v in all[-1].items()} for which, all in found[name].items()}, file=sys.stderr)
    text = table(found, list(servers), tar, times)
    print(text)
    if report:
        with open(report) as file:
            page = file.read()
        with open(report, "w") as file:
            file.write(re.sub(r"(<!-- bench-images -->\n).*?(<!-- /bench-images -->)", lambda m: f"{m[1]}\n{text}\n{m[2]}", page, flags=re.S))


def table(found, names, tar, times):
    def middle(name, which, key):
        return statistics.median(one[key] for one in found[name][which])
    ours, theirs = names[0], names[1]
    rows = []
    def row(what, bar, which, key, show):
        values = [middle(name, which, key) for name in names]
        rows.append([what, *map(show, values), f"{values[0] / values[1]:.2f}" if values[1] else "", bar])
    seconds, mega = (lambda v: f"{v:.2f} s"), (lambda v: f"{v / 1e6:.1f} MB")
    mebi = lambda v: f"{v / 2**20:.0f} MiB"
    for which, title in (("large", "8 layers"), ("small", "200 layers")):
        row(f"{title}: time", "at most 0.5 times", which, "time", seconds)
        row(f"{title}: CPU of the server", "at most 1", which, "cpu", seconds)
        row(f"{title}: peak memory of the server", "below 96 MiB", which, "memory", mebi)
        row(f"{title}: bytes from the registry", "", which, "bytes", mega)
        row(f"{title}: bytes on disk", "", which, "disk", mega)
        values = [middle(name, which, "disk") / tar[which] for name in names]
        rows.append([f"{title}: on disk, by what tar unpacks ({mega(tar[which])})", *(f"{v:.3f}" for v in values), "", "at most 1.05"])
    row("an image that shares 7 of them: bytes from the registry", "what is new", "next", "bytes", mega)
    row("the same: time", "", "next", "time", seconds)
    values = [middle(name, "killed", "rest") / middle(name, "large", "bytes") for name in names]
    rows.append(["killed with SIGKILL at nine tenths: bytes that the next pull fetches", *(f"{100 * v:.0f} %" for v in values), "", "10 %"])
    head = ["", *names, "ratio", "bar"]
    lines = ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]]
    return f"{os.uname().release}, {os.cpu_count()} processors; medians of {times}, taking turns.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1] == "fetch":
        fetch(sys.argv[2])
    elif sys.argv[1] == "make":
        make(*sys.argv[2:4])
    else:
        run(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:])
