"""hot.py functions MAP: the addresses of all functions in a map that lld wrote, one a line.
hot.py script MAP FILE...: a linker script that puts first what was entered; FILEs have one address a line each and are
named VIEW.BUNDLE.COMMAND. What most commands execute comes first, so that the small ones touch little."""
import re
import sys

SECTION = re.compile(r"\s*([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+\d+\s+(\S+):\((\.text[^)]*)\)$")

SYMBOL = re.compile(r"\s*([0-9a-f]+)\s+[0-9a-f]+\s+[0-9a-f]+\s+1 {17}\S")


def sections(path):
    """(address, size, object, section) of every piece of code in a map that lld wrote."""
    found = (SECTION.match(line) for line in open(path))
    return sorted((int(m[1], 16), int(m[2], 16), m[3], m[4]) for m in found if m and int(m[2], 16))


def pattern(file, section):
    """What names a section in a script whatever compiler made it: hashes of crates and of versions are left open.
    None for a start file's code, which has no name of its own."""
    if archive := re.search(r"([^/]+\.a)\(([^)]+\.o)\)$", file):
        library = re.sub(r"-[0-9.]+\.a$", "-*.a", archive[1])
        return f"*{library}:{archive[2]}({section})"
    if section == ".text":
        return None
    name = re.sub(r"17h[0-9a-f]{16}E", "17h*E", section)
    name = re.sub(r"Cs[0-9A-Za-z]{8,}_", "Cs*_", name)
    name = re.sub(r"\.llvm\.\d+", ".llvm.*", name)
    return f"*({name})"


def main():
    pieces = sections(sys.argv[2])
    if sys.argv[1] == "functions":
        first, last = pieces[0][0], pieces[-1][0] + pieces[-1][1]
        symbols = (SYMBOL.match(line) for line in open(sys.argv[2]))
        found = {int(m[1], 16) for m in symbols if m} | {p[0] for p in pieces}
        print("\n".join(f"{a:x}" for a in sorted(found) if first <= a < last))
        return
    users, order = {}, {}
    for path in sys.argv[3:]:
        command = path.rsplit(".", 1)[1]
        addresses = [int(line, 16) for line in open(path)]
        at = {}
        i = 0
        for a in sorted(addresses):
            while i + 1 < len(pieces) and pieces[i + 1][0] <= a:
                i += 1
            if a < pieces[i][0] + pieces[i][1]:
                at[a] = pieces[i]
        for a in addresses:
            if (piece := at.get(a)) and (key := pattern(piece[2], piece[3])):
                users.setdefault(key, set()).add(command)
                order.setdefault(key, (len(order), piece[1]))
    hot = sorted(users, key=lambda k: (-len(users[k]), order[k][0]))
    total = sum(size for _, size in order.values())
    print(f"{len(hot)} pieces, {total // 1024} of {sum(p[1] for p in pieces) // 1024} KiB", file=sys.stderr)
    print("/* Written by bench/hot: the code that commands execute, the most used first. */")
    print("SECTIONS {\n    .text.hot : {")
    for key in hot:
        print(f"        {key}")
    print("    }\n}\nINSERT BEFORE .text;")


main()
