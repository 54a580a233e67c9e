#!/usr/bin/env python3
"""report.py OUT [MARKDOWN SVG]: the tables of a run of bench/run, printed, or written into MARKDOWN between
the lines <!-- bench --> and <!-- /bench -->, and its plot. OUT is what bench/in-view has filled."""
import csv, glob, json, os, re, sys
from collections import defaultdict

COMMANDS = ["run", "create", "start", "exec", "state", "kill", "delete", "list"]
SEALS = ("run", "create", "exec")  # the commands that protect the binary
RIVAL = "crun-static"
COLOURS = {"floor": "#888", "floor-safe": "#bbb", "floor-sealed": "#555", "rrun": "#d1242f", "crun-static": "#0969da",
           "crun": "#54aeff", "runc": "#1a7f37", "youki": "#9a6700"}
out = sys.argv[1]


def bar(command):
    """The most that rrun may take, in floors and in static cruns."""
    return {"run": (1.2, 0.75), "create": (1.2, 0.75), "list": (None, 0.5)}.get(command, (1.3, 0.7))


def quantile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(p * len(values)))]


def load():
    """view -> step -> runtime -> rows of (wall us, cpu us, maxrss KiB, faults, switches, status)"""
    data = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(glob.glob(f"{out}/*.csv")):
        view = os.path.basename(path)[:-4]
        for row in csv.reader(open(path)):
            data[view][row[1]][row[0]].append([float(x) for x in row[3:]])
    return data


class Step:
    """One command's figures in one view, by runtime."""

    def __init__(self, rows, view):
        self.rows, self.view = rows, view

    def wall(self, runtime, p):
        return quantile([r[0] for r in self.rows[runtime]], p) / 1e3 if self.rows.get(runtime) else None

    def cpu(self, runtime, p=0.5):
        return quantile([r[1] for r in self.rows[runtime]], p) / 1e3 if self.rows.get(runtime) else None

    def key(self, runtime):
        """The time that is compared: on v1 the wall time has two humps (an RCU wait is paid or not), so p10."""
        return self.wall(runtime, 0.5 if self.view == "v2" else 0.1)

    def median(self, runtime, column):
        return quantile([r[column] for r in self.rows[runtime]], 0.5) if self.rows.get(runtime) else None

    def failed(self, runtime):
        return sum(1 for r in self.rows.get(runtime, []) if r[5])


def ratio(a, b):
    return a / b if a is not None and b else None


def number(x, digits=2):
    return "" if x is None else f"{x:.{digits}f}"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|---|" + "--:|" * (len(head) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def times(view, steps, runtimes, spec):
    """Wall times, and the ratios that the bars are about."""
    rows = []
    for command in COMMANDS:
        step = steps.get(f"{spec}/{command}")
        if not step:
            continue
        s = Step(step, view)
        cells = []
        for r in runtimes:
            p = [s.wall(r, q) for q in (0.1, 0.5, 0.95, 0.99)]
            failed = f" ({s.failed(r)} failed)" if s.failed(r) else ""
            cells.append("" if p[0] is None else " / ".join(number(x) for x in p) + failed)
        rows.append([command] + cells)
    yield from table(["ms: p10 / p50 / p95 / p99"] + runtimes, rows)


def ratios(view, steps, spec):
    rows = []
    what = "p50" if view == "v2" else "p10"
    many = [f"plain@{n}/list" for n in counts(steps)] if spec == "plain" else []
    for command in COMMANDS + many:
        step = steps.get(f"{spec}/{command}") or steps.get(command)
        if not step:
            continue
        s = Step(step, view)
        command, name = ("list", f"list of {command[6:-5]}") if command in many else (command, command)
        ours, floor, rival = s.key("rrun"), s.key("floor"), s.key(RIVAL)
        apart = s.key("floor-sealed") - floor if command in SEALS and s.key("floor-sealed") and floor else 0
        least = ratio(ours - apart, floor) if ours else None
        most_floor, most_rival = bar(command)
        met = [] if least is None else [least <= most_floor] if most_floor else []
        met += [] if ratio(ours, rival) is None else [ratio(ours, rival) <= most_rival]
        rows.append([
            name, number(ratio(ours, floor)), number(least) if apart else "", number(most_floor, 1) if most_floor else "",
            number(ratio(ours, rival)), f"{most_rival:g}", "" if not met else "yes" if all(met) else "no",
            number(ratio(s.cpu("rrun"), s.cpu("floor"))), number(ratio(s.cpu("rrun"), s.cpu(RIVAL))),
            number(ratio(rival, floor)), number(ratio(s.key("runc"), floor))])
    yield from table([f"{what}, as a ratio", "rrun / floor", "without protection", "bar", f"rrun / {RIVAL}", "bar", "met",
                      "cpu: rrun / floor", f"cpu: rrun / {RIVAL}", f"{RIVAL} / floor", "runc / floor"], rows)


def parts(view, steps):
    """What protecting the binary and Docker's filter add: CPU time, as neither waits for anything."""
    def added(to, base, runtime, other):
        if to in steps and base in steps:
            a, b = Step(steps[to], view).cpu(runtime), Step(steps[base], view).cpu(other)
            return None if a is None or b is None else a - b
    seals = [(c, added(f"plain/{c}", f"plain/{c}", "floor-sealed", "floor")) for c in SEALS]
    yield "CPU time of the binary's protection, as the floor pays it: " + ", ".join(f"{c} {number(t)} ms" for c, t in seals if t is not None) + " (bar: 0.35 ms)."
    filters = [(r, added("docker/run", "unfiltered/run", r, r)) for r in COLOURS]
    yield "CPU time that Docker's seccomp profile adds to run: " + ", ".join(f"{r} {number(t)} ms" for r, t in filters if t is not None) + " (bar: 0.2 ms).\n"


def costs(view, steps, runtimes, spec):
    counts = defaultdict(list)
    for path in glob.glob(f"{out}/counts/{view}.*.{spec}.*.json"):
        _, runtime, _, command, _, _ = os.path.basename(path).split(".")
        try:
            counts[command, runtime].append(json.load(open(path)))
        except ValueError:
            pass
    for title, cell in (
            ("cpu ms, p50", lambda s, c, r: number(s.cpu(r))),
            ("peak memory, KiB", lambda s, c, r: number(s.median(r, 2), 0)),
            ("minor faults", lambda s, c, r: number(s.median(r, 3), 0)),
            ("system calls", lambda s, c, r: number(min((x["syscalls"] for x in counts[c, r]), default=None), 0)),
            ("programs / processes", lambda s, c, r: " / ".join(number(min((x[k] for x in counts[c, r])), 0) for k in ("execs", "processes")) if counts[c, r] else "")):
        rows = [[c] + [cell(Step(steps[f"{spec}/{c}"], view), c, r) for r in runtimes] for c in COMMANDS if f"{spec}/{c}" in steps]
        rows = [r for r in rows if any(r[1:])]
        if rows:
            yield from table([title] + runtimes, rows)


def counts(steps):
    """How many containers were just there, in the passes that had some."""
    return sorted({int(k[6:].split("/")[0]) for k in steps if k.startswith("plain@")})


def present(view, steps, runtimes, count):
    rows = []
    for command in COMMANDS:
        if f"plain@{count}/{command}" not in steps:
            continue
        many, few = Step(steps[f"plain@{count}/{command}"], view), Step(steps[f"plain/{command}"], view)
        cells = ["" if many.key(r) is None else f"{many.key(r):.2f} ({number(ratio(many.key(r), few.key(r)))})" for r in runtimes]
        rows.append([command] + cells)
    if rows:
        yield f"With {count} containers of each runtime present: ms ({'p50' if view == 'v2' else 'p10'}), and as a ratio to none.\n"
        yield from table(["command"] + runtimes, rows)


def rate(steps, runtimes):
    rows = []
    for step in sorted(k for k in steps if k.startswith("rate")):
        per_second = {r: quantile([x[0] for x in steps[step][r]], 0.5) if steps[step].get(r) else None for r in runtimes}
        workers, what = re.match(r"rate(\d+)\.(.*)", step).groups()
        rows.append([f"{what}, {workers} at a time"] + ["" if v is None else f"{v:.0f} ({number(ratio(v, per_second.get('floor')))})" for v in per_second.values()])
    if rows:
        yield "Containers per second, and as a ratio to the floor (bar: 0.8).\n"
        yield from table(["rate"] + runtimes, rows)


def memory(view):
    try:
        rows = [line.strip().split(",") for line in open(f"{out}/{view}.memory")]
    except FileNotFoundError:
        return
    yield "A created container's process before start, and the smallest memory limit its container starts under.\n"
    yield from table(["runtime", "resident KiB", "private dirty KiB", "least limit KiB"], rows)


def machine():
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), os.uname().machine)
    memory_gib = int(re.search(r"\d+", open("/proc/meminfo").read())[0]) / 2**20
    n, idle = open(f"{out}/settings").read().split()
    yield f"{cpu}, {os.cpu_count()} processors, {memory_gib:.0f} GiB, Linux {os.uname().release}; {n} runs of each command, shuffled" + \
        (f", after {int(idle) / 1000:g} ms of rest" if idle != "0" else "") + ".\n"
    versions = [l.split() for l in open(f"{out}/versions")]
    yield "Peers: " + ", ".join(f"{name} {version} ({int(size) / 1e6:.1f} MB)" for name, version, size in versions) + ".\n"


def text(data):
    yield from machine()
    for view, steps in data.items():
        names = {"v1": "cgroup v1", "v2": "cgroup v2", "host": "the host's own hierarchies"}
        runtimes = [r for r in COLOURS if any(r in step for step in steps.values())]
        for spec, words in (("plain", "the bundle that `spec` writes"), ("docker", "a bundle as Docker makes it")):
            if f"{spec}/run" in steps:
                yield f"### {names.get(view, view)}: {words}\n"
                yield from ratios(view, steps, spec)
                yield from times(view, steps, runtimes, spec)
                yield from costs(view, steps, runtimes, spec)
        yield from parts(view, steps)
        for count in counts(steps):
            yield from present(view, steps, runtimes, count)
        yield from rate(steps, runtimes)
        yield from memory(view)


def plot(data):
    """Dots of each runtime by command, as ratios to the floor on a logarithmic axis; a panel per view."""
    from math import log
    steps_of = [(v, spec, c) for v in data for spec in ("plain", "docker") for c in COMMANDS
                if f"{spec}/{c}" in data[v] and (spec == "plain" or c in SEALS)]
    left, width, row, top = 190, 560, 22, 50
    x = lambda value: left + width * log(min(max(value, 0.9), 30) / 0.9) / log(30 / 0.9)
    runtimes = [r for r in COLOURS if r != "floor" and any(r in s for v in data.values() for s in v.values())]
    height = top + row * (len(steps_of) + len(data)) + 40
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="#fff"/>',
           f'<text x="{left}" y="18" font-weight="bold">Time of each command as a multiple of the floor (lower is better)</text>']
    for i, r in enumerate(runtimes):
        svg.append(f'<circle cx="{left + 92 * i + 6}" cy="34" r="5" fill="{COLOURS[r]}"/><text x="{left + 92 * i + 15}" y="38">{r}</text>')
    bottom = height - 30
    for tick in (1, 1.2, 2, 3, 5, 10, 20):
        svg.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}" stroke="{"#333" if tick == 1 else "#ddd"}"/>'
                   f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    y, last = top, None
    for view, spec, command in steps_of:
        if view != last:
            y += row
            svg.append(f'<text x="10" y="{y - 4}" font-weight="bold">cgroup {view}, {"p50" if view == "v2" else "p10"}</text>')
            last = view
        y += row
        s = Step(data[view][f"{spec}/{command}"], view)
        svg.append(f'<text x="{left - 10}" y="{y - 6}" text-anchor="end">{command}{" (as Docker)" if spec == "docker" else ""}</text>')
        for r in reversed(runtimes):
            value = ratio(s.key(r), s.key("floor"))
            if value:
                svg.append(f'<circle cx="{x(value):.1f}" cy="{y - 10}" r="5" fill="{COLOURS[r]}"><title>{r} {command}: {value:.2f}</title></circle>')
    return "\n".join(svg + ["</svg>", ""])


data = load()
body = "\n".join(text(data))
if len(sys.argv) < 4:
    print(body)
else:
    markdown, svg = sys.argv[2:]
    page = open(markdown).read()
    begin, end = "<!-- bench -->\n", "<!-- /bench -->"
    if begin not in page or end not in page:
        sys.exit(f"{markdown} has no lines {begin.strip()} and {end}")
    open(markdown, "w").write(page[:page.index(begin) + len(begin)] + "\n" + body + "\n" + page[page.index(end):])
    open(svg, "w").write(plot(data))
