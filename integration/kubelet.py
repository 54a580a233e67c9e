"""kubelet.py [-post] PATH:          prints what the kubelet on this machine answers.
kubelet.py --pod NAME EXPRESSION:    what a Python expression makes of a static pod in the kubelet's list on stdin:
                                     `pod`, `status`, and `c`, its container statuses by name.
kubelet.py --stats NAME:             whether the summary on stdin has figures of the pod's CPU, memory and network,
                                     and of each of its containers' CPU and memory.
"""

import json
import ssl
import sys
import urllib.error
import urllib.request


def ask(path, data=None):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the kubelet signed its certificate itself
    try:
        with urllib.request.urlopen(urllib.request.Request("https://127.0.0.1:10250" + path, data=data), context=context) as answer:
            sys.stdout.write(answer.read().decode())
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: {error} {error.read().decode()}")
    except urllib.error.URLError as error:
        sys.exit(f"{path}: {error}")


def pod(name, expression):
    for item in json.load(sys.stdin)["items"] or []:
        if item["metadata"]["name"] == f"{name}-node":
            status = item.get("status", {})
            statuses = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
            print(eval(expression, {"pod": item, "status": status, "c": {each["name"]: each for each in statuses}}))
            return
    sys.exit(f"no pod {name}")


def stats(name):
    for item in json.load(sys.stdin)["pods"] or []:
        if item["podRef"]["name"] == f"{name}-node":
            missing = [each["name"] for each in [item | {"name": "the pod"}, *item["containers"]] if each.get("cpu", {}).get(
                "usageNanoCores") is None or not each.get("memory", {}).get("workingSetBytes")]
            missing += [] if item.get("network", {}).get("rxBytes") else ["the pod's network"]
            sys.exit(f"no figures of {', '.join(missing)}" if missing else 0)
    sys.exit(f"no pod {name}")


if __name__ == "__main__":
    if sys.argv[1] == "--pod":
        pod(*sys.argv[2:])
    elif sys.argv[1] == "--stats":
        stats(sys.argv[2])
    elif sys.argv[1] == "-post":
        ask(sys.argv[2], b"")
    else:
        ask(sys.argv[1])
