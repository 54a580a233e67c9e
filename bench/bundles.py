#!/usr/bin/env python3
"""bundles.py OUT PROBE VIEW COPIES: the benchmark's bundles, and Docker's filter for the floor program.

OUT/NAME-COPY, NAME one of: plain (what `spec` writes), docker (docker.json, which is what Docker made
of `docker run --network none --memory 256m --cpus .5 --cpu-shares 512 --pids-limit 100` but for its hook
and the paths), each also as NAME.wait, whose process waits to be killed; unfiltered (docker without
seccomp); present (little but a process,
for the containers that are just there); tight (plain.wait under a memory limit, the harness sets it).
Where the configuration has PLACEHOLDER the harness writes the container's id before each call.
VIEW is v1 or v2: a v2 view gets a cgroup namespace, and no limits of controllers it does not have."""
import copy, json, os, shutil, sys
from filter import program

PLACEHOLDER = "x" * 16
HERE = os.path.dirname(os.path.abspath(__file__))
SAFE = ["nosuid", "noexec", "nodev"]


def mount(destination, kind, source, *options):
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def plain():
    caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": ["/probe"], "cwd": "/", "noNewPrivileges": True,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "capabilities": {k: caps for k in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]},
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            mount("/dev/shm", "tmpfs", "shm", *SAFE, "mode=1777", "size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", *SAFE),
            mount("/sys", "sysfs", "sysfs", *SAFE, "ro"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", *SAFE, "relatime", "ro")],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                            "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]}}


def docker(view, controllers):
    c = json.load(open(f"{HERE}/docker.json"))
    if view == "v2":
        for limit, controller in (("memory", "memory"), ("cpu", "cpu"), ("pids", "pids"), ("blockIO", "io")):
            if controller not in controllers:
                c["linux"]["resources"].pop(limit)
    return c


def present():
    c = plain()
    c["process"]["args"] = ["/probe", "wait"]
    c["mounts"] = c["mounts"][:2]
    c["linux"]["namespaces"] = [{"type": "pid"}, {"type": "mount"}]
    del c["linux"]["maskedPaths"], c["linux"]["readonlyPaths"], c["hostname"]
    return c


def write(path, config, probe):
    root = f"{path}/rootfs"
    for d in ("proc", "dev", "sys", "etc", "tmp"):
        os.makedirs(f"{root}/{d}")
    shutil.copy(probe, f"{root}/probe")
    for name in ("resolv.conf", "hostname", "hosts"):
        open(f"{path}/{name}", "w").write("127.0.0.1 localhost\n")
        open(f"{root}/etc/{name}", "w").close()
    open(f"{root}/etc/passwd", "w").write("root:x:0:0:root:/root:/bin/sh\n")
    config = copy.deepcopy(config)
    config["linux"]["cgroupsPath"] = f"/rrun-bench/{PLACEHOLDER}"
    for m in config["mounts"]:
        if m["type"] == "bind":  # peers take a relative source for one of the current folder
            m["source"] = f"{path}/{m['source']}"
    json.dump(config, open(f"{path}/config.json", "w"), separators=(",", ":"))


out, probe, view, copies = sys.argv[1:]
controllers = open("/sys/fs/cgroup/cgroup.controllers").read().split() if view == "v2" else []
shutil.rmtree(out, ignore_errors=True)
configs = {"plain": plain(), "docker": docker(view, controllers)}
for name in list(configs):
    wait = configs[f"{name}.wait"] = copy.deepcopy(configs[name])
    wait["process"]["args"] = ["/probe", "wait"]
    if view == "v2":
        for c in (configs[name], wait):
            c["linux"]["namespaces"].append({"type": "cgroup"})
configs["unfiltered"] = copy.deepcopy(configs["docker"])
del configs["unfiltered"]["linux"]["seccomp"]
configs["present"] = present()
configs["tight"] = copy.deepcopy(configs["plain.wait"])
# As long as the longest value that the harness writes over it.
configs["tight"]["linux"]["resources"]["memory"] = {"limit": 99999999}
for name, config in configs.items():
    for i in range(int(copies) + 1):
        write(os.path.abspath(f"{out}/{name}-{i}"), config, probe)
open(f"{out}/docker.bpf", "wb").write(program(configs["docker"]["linux"]["seccomp"]))
