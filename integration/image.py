"""image.py BUSYBOX TAR: makes a small container image from a static busybox, without a registry.

The archive is an OCI image layout that also has Docker's manifest.json, so that both
`ctr image import` and `docker load` take it. Its name is localhost/busybox:1. images.py makes
more images of the same parts. The same programs give the same bytes, and so the same digests.
"""

import functools
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile

NAME = "localhost/busybox:1"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def add(tar, name, data=None, mode=0o755, kind=tarfile.REGTYPE, target=""):
    """Adds an entry to an open archive; without data, a folder or a link."""
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname = mode, kind, target
    info.size = len(data) if data is not None else 0
    tar.addfile(info, io.BytesIO(data) if data is not None else None)


def layer(files):
    """A layer, as bytes: files is a list of add()'s arguments after the archive, each a dict."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for file in files:
            add(tar, **file)
    return out.getvalue()


def base(busybox):
    """The entries of a small root file system around a static busybox: applets, folders, users."""
    with open(busybox, "rb") as file:
        program = file.read()
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    files = [
        dict(name=folder, mode=mode, kind=tarfile.DIRTYPE)
        for folder, mode in [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("root", 0o700),
                             ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777), ("var", 0o755)]
    ]
    files.append(dict(name="bin/busybox", data=program))
    files += [dict(name=f"bin/{applet}", kind=tarfile.LNKTYPE, target="bin/busybox")
              for applet in applets if applet != "busybox"]
    files.append(dict(name="etc/passwd", mode=0o644,
                      data=b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n"))
    files.append(dict(name="etc/group", mode=0o644, data=b"root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n"))
    return files


def architecture():
    """This machine's architecture as images name it."""
    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout.strip()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


@functools.cache
def zipped(data):
    return gzip.compress(data, mtime=0)


class Image:
    """An image of the given layers (bytes) and configuration (the config's own `config` object):
    `blobs` by digest, and `manifest`, the descriptor of the one that holds them together."""

    def __init__(self, layers, config, compress=False):
        self.blobs = {}
        if compress:
            self.layers = [self.blob(zipped(data), LAYER + "+gzip") for data in layers]
        else:
            self.layers = [self.blob(data, LAYER) for data in layers]
        self.config = self.blob(json.dumps({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest() for data in layers]},
        }).encode(), CONFIG)
        self.manifest = self.blob(json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": self.config, "layers": self.layers,
        }).encode(), MANIFEST)

    def blob(self, data, media_type):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def main(busybox, target):
    image = Image([layer(base(busybox))], {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})
    image.manifest["platform"] = {"architecture": architecture(), "os": "linux"}
    image.manifest["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "1"}

    def path(digest):
        return "blobs/sha256/" + digest.removeprefix("sha256:")

    with tarfile.open(target, "w") as tar:
        add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
        add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [image.manifest]}).encode(), 0o644)
        add(tar, "manifest.json", json.dumps([{
            "Config": path(image.config["digest"]), "RepoTags": [NAME],
            "Layers": [path(descriptor["digest"]) for descriptor in image.layers],
        }]).encode(), 0o644)
        for digest, data in image.blobs.items():
            add(tar, path(digest), data, 0o644)


if __name__ == "__main__":
    main(*sys.argv[1:])
