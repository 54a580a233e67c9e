"""terminal.py TEXT COMMAND: runs a shell command on a terminal of 33 rows and 99 columns.

A line of TEXT is typed whenever the command has written something (a prompt); the terminal
grows to 44 rows before the last. Prints what it shows; ends with the command's status.
"""

import fcntl
import os
import pty
import struct
import sys
import termios
import time


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
                time.sleep(1)  # a client looks after the size by itself, a while after it began
                resize(fd, 44, 99)
                time.sleep(1)
            os.write(fd, lines.pop(0))
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


main(*sys.argv[1:])
