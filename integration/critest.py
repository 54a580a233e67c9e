"""critest.py RUN REPORT: what a run of critest did, from ginkgo's JSON report: a line PASS, FAIL or SKIP
for every case that was selected, with the reason below a FAIL. A case that critest skipped is a
SKIP only if this kernel lacks what it needs; any other skip is a FAIL.
"""

import json
import os
import sys
from itertools import takewhile
from pathlib import Path


def kernel_lacks(case):
    """What the kernel lacks for the case, or nothing."""
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if "AppArmor" in case and not (enabled.exists() and enabled.read_text().strip() == "Y"):
        return "AppArmor is not active in this kernel"
    return None


def kernel_breaks(case):
    """What the kernel lacks for a case that critest does not skip by itself, or nothing."""
    if "port mapping with host port" in case and not os.environ["HOST_PORTS"]:
        return "the kernel has no multiport match"
    return None


def main(run, report):
    for suite in json.loads(Path(report).read_text()):
        for spec in suite["SpecReports"]:
            words = (spec.get("ContainerHierarchyTexts") or []) + [spec["LeafNodeText"]]
            case = f"{run}: {' '.join(words)}"
            failure = spec.get("Failure") or {}
            message = failure.get("Message", "")
            if spec["LeafNodeType"] != "It" and spec["State"] == "passed":
                continue
            if spec["State"] == "passed":
                print("PASS", case)
            elif spec["State"] == "skipped":
                if not message:  # left out by -ginkgo.focus or -ginkgo.skip
                    continue
                lacks = kernel_lacks(case)
                print(f"SKIP {case}: {lacks}" if lacks else f"FAIL {case}\n     it was skipped: {message}")
            elif kernel_breaks(case):
                print(f"SKIP {case}: {kernel_breaks(case)}")
            elif spec["State"] != "pending":
                where = failure.get("Location", {})
                print("FAIL", case)
                # Go's dump of an error says what the lines before it say.
                for line in takewhile(lambda line: line.strip() not in ("Unexpected error:", "{"), message.strip().splitlines() or [spec["State"]]):
                    print("     " + line)
                print(f"     at {Path(where.get('FileName', '?')).name}:{where.get('LineNumber', '?')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
