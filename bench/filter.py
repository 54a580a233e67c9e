"""A seccomp program of the layout that the kernel loads fastest: one balanced tree per architecture over
ranges of system calls with equal action, argument checks as leaves. For the floor program; x86_64 only."""
import re, struct, sys

LD, AND, JA, JEQ, JGE, RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
ARCHES = {"SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X86": 0x40000003}


def numbers(header):
    """name -> number, from the C library's kernel headers"""
    text = open(f"/usr/include/x86_64-linux-gnu/asm/{header}.h").read()
    found = re.findall(r"^#define __NR_(\w+) (\(__X32_SYSCALL_BIT \+ )?(\d+)", text, re.M)
    return {name: int(n) + (0x40000000 if x32 else 0) for name, x32, n in found}


def action(rule, default):
    return ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else ERRNO | rule.get("errnoRet", default)


def leaf(rules, default):
    """Instructions of one system call: its unconditional action, or a check of one argument per rule."""
    for rule in rules:
        if not rule.get("args"):
            return ((RET, 0, 0, action(rule, 1)),)
    code = []
    for rule in rules:
        (arg,) = rule["args"]
        masked = arg["op"] == "SCMP_CMP_MASKED_EQ"
        mask, value = (arg["value"], arg.get("valueTwo", 0)) if masked else (2**64 - 1, arg["value"])
        check = []
        for shift in (32, 0):
            m, v = mask >> shift & 0xFFFFFFFF, value >> shift & 0xFFFFFFFF
            if m:
                part = [(LD, 0, 0, 16 + 8 * arg["index"] + shift // 8)] + ([(AND, 0, 0, m)] if m != 0xFFFFFFFF else [])
                check.append(part + [v])
        # From the end: a mismatch skips what is left of this rule.
        lines = [(RET, 0, 0, action(rule, 1))]
        for *part, v in reversed(check):
            lines = part + [(JEQ, 0, len(lines), v)] + lines
        code += lines
    return tuple(code + [(RET, 0, 0, default)])


def tree(ranges):
    if len(ranges) == 1:
        return list(ranges[0][1])
    half = len(ranges) // 2
    low, high = tree(ranges[:half]), tree(ranges[half:])
    if len(low) < 256:
        return [(JGE, len(low), 0, ranges[half][0])] + low + high
    return [(JGE, 0, 1, ranges[half][0]), (JA, 0, 0, len(low))] + low + high


def decide(seccomp, table):
    default = ERRNO | seccomp.get("defaultErrnoRet", 1)
    rules = {}
    for rule in seccomp["syscalls"]:
        for name in rule["names"]:
            if name in table:
                rules.setdefault(table[name], []).append(rule)
    other, ranges = ((RET, 0, 0, default),), [(0, ((RET, 0, 0, default),))]
    for n in sorted(rules):
        for start, code in ((n, leaf(rules[n], default)), (n + 1, other)):
            if ranges[-1][0] == start:
                ranges.pop()
            if not ranges or ranges[-1][1] != code:
                ranges.append((start, code))
    return tree(ranges)


def program(seccomp):
    try:
        native = numbers("unistd_64") | {f"{n} x32": i for n, i in numbers("unistd_x32").items()}
        compat = numbers("unistd_32")
    except FileNotFoundError:
        return b""
    both = dict(seccomp, syscalls=[dict(r, names=r["names"] + [f"{n} x32" for n in r["names"]]) for r in seccomp["syscalls"]])
    bodies = [(ARCHES["SCMP_ARCH_X86_64"], [(LD, 0, 0, 0)] + decide(both, native)), (ARCHES["SCMP_ARCH_X86"], [(LD, 0, 0, 0)] + decide(seccomp, compat))]
    code = [(LD, 0, 0, 4)]
    for arch, body in bodies:
        code += [(JEQ, 1, 0, arch), (JA, 0, 0, len(body))] + body
    code.append((RET, 0, 0, 0x80000000))  # another architecture: kill the process
    return b"".join(struct.pack("<HBBI", *i) for i in code)
