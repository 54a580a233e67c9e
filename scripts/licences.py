"""Checks the licence of every dependency in Cargo.lock against the list in deny.toml.

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
bad = [p for p in packages if not allowed(p["license"] or "none", allow)]
for p in bad:
    print(f"check: {p['name']} {p['version']}: licence {p['license']} is not in deny.toml's list", file=sys.stderr)
if bad:
    sys.exit(1)
print(f"licences: {len(packages)} packages, all in deny.toml's list")
