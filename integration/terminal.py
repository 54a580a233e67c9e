"""terminal.py TEXT COMMAND: runs a shell command on a terminal of 33 rows and 99 columns.

TEXT is typed once the command has written something (a prompt) and is resized to 44 rows
before its last line. Prints what the terminal shows; ends with the command's status.
"""

import fcntl
import os
import pty
import struct
import sys
import termios


def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def main(text, command):
    pid, fd = pty.fork()
    if pid == 0:
        resize(0, 33, 99)
        os.execvp("bash", ["bash", "-c", command])
    lines = text.encode().decode("unicode_escape").encode().splitlines(keepends=True)
    while True:
        try:
            data = os.read(fd, 4096)
        except OSError:  # the last process on the terminal is gone
            break
        if not data:
            break
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        if lines:
            if len(lines) == 1:
                resize(fd, 44, 99)
            os.write(fd, lines.pop(0))
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


main(*sys.argv[1:])
