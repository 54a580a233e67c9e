"""Checks licence and origin of every package in Cargo.lock against deny.toml.

cargo-deny does this and more; this needs nothing but Python and runs everywhere.
"""

import json
import os
import re
import subprocess
import sys
import tomllib


def allowed(expression, allow):
    """Whether an SPDX expression can be met from `allow`; "a/b" is the old way to write "a OR b"."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def choice():
        met = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            met = both() or met
        return met

    def both():
        met = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            met = one() and met
        return met

    def one():
        token = tokens.pop(0)
        if token == "(":
            met = choice()
            tokens.pop(0)
            return met
        if tokens[:1] == ["WITH"]:
            token = " ".join([token, tokens.pop(0), tokens.pop(0)])
        return token in allow

    return choice()


with open("deny.toml", "rb") as file:
    allow = set(tomllib.load(file)["licenses"]["allow"])
metadata = subprocess.run(
    [os.environ.get("CARGO", "cargo"), "metadata", "--format-version=1", "--locked"],
    stdout=subprocess.PIPE, check=True)
packages = json.loads(metadata.stdout)["packages"]
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
bad = 0
for p in packages:
    name = f"{p['name']} {p['version']}"
    if not allowed(p["license"] or "none", allow):
        print(f"check: {name}: licence {p['license']} is not in deny.toml's list", file=sys.stderr)
        bad += 1
    if p["source"] not in (None, CRATES_IO):
        print(f"check: {name}: comes from {p['source']}, not from crates.io", file=sys.stderr)
        bad += 1
if bad:
    sys.exit(1)
print(f"dependencies: {len(packages)} packages, all from crates.io and under a licence in deny.toml's list")
