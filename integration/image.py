"""image.py BUSYBOX TAR: makes a small container image from a static busybox, without a registry.

The archive is an OCI image layout that also has Docker's manifest.json, so that both
`ctr image import` and `docker load` take it. Its name is localhost/busybox:1.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile

NAME = "localhost/busybox:1"


def add(tar, name, data=None, mode=0o755, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname = mode, kind, target
    info.size = len(data) if data is not None else 0
    tar.addfile(info, io.BytesIO(data) if data is not None else None)


def layer(busybox):
    with open(busybox, "rb") as file:
        program = file.read()
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder, mode in [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("root", 0o700),
                             ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777), ("var", 0o755)]:
            add(tar, folder, mode=mode, kind=tarfile.DIRTYPE)
        add(tar, "bin/busybox", program)
        for applet in applets:
            if applet != "busybox":
                add(tar, f"bin/{applet}", kind=tarfile.LNKTYPE, target="bin/busybox")
        add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n", 0o644)
        add(tar, "etc/group", b"root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n", 0o644)
    return out.getvalue()


def main(busybox, target):
    blobs = {}

    def blob(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout.strip()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    files = blob(layer(busybox), "application/vnd.oci.image.layer.v1.tar")
    config = blob(json.dumps({
        "architecture": architecture, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [files["digest"]]},
    }).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = blob(json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [files],
    }).encode(), "application/vnd.oci.image.manifest.v1+json")
    manifest["platform"] = {"architecture": architecture, "os": "linux"}
    manifest["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "1"}

    def path(descriptor):
        return "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")

    with tarfile.open(target, "w") as tar:
        add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
        add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode(), 0o644)
        add(tar, "manifest.json", json.dumps(
            [{"Config": path(config), "RepoTags": [NAME], "Layers": [path(files)]}]).encode(), 0o644)
        for digest, data in blobs.items():
            add(tar, f"blobs/sha256/{digest}", data, 0o644)


if __name__ == "__main__":
    main(*sys.argv[1:])
