/* entered FILE ADDRESSES COMMAND [ARGS...]: runs a command with what it starts and appends to FILE which of its functions
 * were entered, in that order. ADDRESSES has one a line (hex); each gets a breakpoint until it is met. bench/hot makes
 * runtime/hot.ld of them. The program must be linked at a fixed address. Another program than the command's (the
 * container's own, a hook) is let go at its execve, and what still waits at the end as it was before. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) ((x) < 0 ? (perror(#x), exit(1)) : (void)0)

static struct stat program;
static uint64_t *address, first, last;
static size_t addresses;
static uint8_t *plain, *seen;

/* Whether a process executes the program that is looked at; a clone of its mount has the same inode. */
static int ours(pid_t pid) {
    char name[64];
    struct stat s;
    snprintf(name, sizeof name, "/proc/%d/exe", pid);
    return stat(name, &s) == 0 && s.st_size == program.st_size && s.st_ino == program.st_ino;
}

static void memory(pid_t pid, int store, void *bytes, size_t count, uint64_t at) {
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/mem", pid);
    int fd = open(name, O_RDWR | O_CLOEXEC);
    CHECK(fd);
    ssize_t done = store ? pwrite(fd, bytes, count, (off_t)at) : pread(fd, bytes, count, (off_t)at);
    if (done != (ssize_t)count) perror(name), exit(1);
    close(fd);
}

/* Breakpoints at all addresses that were not met yet. */
static void arm(pid_t pid) {
    size_t size = last - first + 1;
    uint8_t *armed = malloc(size);
    memory(pid, 0, armed, size, first);
    if (!plain) {
        plain = malloc(size);
        for (size_t i = 0; i < size; i++) plain[i] = armed[i];
    }
    for (size_t i = 0; i < addresses; i++)
        if (!seen[i]) armed[address[i] - first] = 0xcc;
    memory(pid, 1, armed, size, first);
    free(armed);
}

static int order(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Takes the breakpoint away that a process stopped at; 0 if it did not stop at one. */
static int met(pid_t pid, FILE *out) {
    struct user_regs_struct regs;
    CHECK(ptrace(PTRACE_GETREGS, pid, 0, &regs));
    uint64_t at = regs.rip - 1, *found = bsearch(&at, address, addresses, sizeof at, order);
    if (!found) return 0;
    memory(pid, 1, &plain[at - first], 1, at);
    regs.rip = at;
    CHECK(ptrace(PTRACE_SETREGS, pid, 0, &regs));
    if (!seen[found - address]) seen[found - address] = 1, fprintf(out, "%lx\n", at);
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: entered FILE ADDRESSES COMMAND [ARGS...]\n"), 2;
    FILE *out = fopen(argv[1], "a"), *in = fopen(argv[2], "r");
    if (!out || !in || stat(argv[3], &program)) return perror("entered"), 1;
    address = calloc(1 << 16, sizeof *address);
    while (addresses < 1 << 16 && fscanf(in, "%lx", &address[addresses]) == 1) addresses++;
    if (addresses == 0) return fprintf(stderr, "%s: no addresses\n", argv[2]), 2;
    qsort(address, addresses, sizeof *address, order);
    seen = calloc(addresses, 1);
    first = address[0], last = address[addresses - 1];
    pid_t others[64], child = fork();
    int left = 0, status, code = 0;
    CHECK(child);
    if (child == 0) {
        CHECK(ptrace(PTRACE_TRACEME, 0, 0, 0));
        raise(SIGSTOP);
        execv(argv[3], argv + 3);
        perror(argv[3]), _exit(127);
    }
    CHECK(waitpid(child, &status, 0));
    CHECK(ptrace(PTRACE_SETOPTIONS, child, 0,
        PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC));
    CHECK(ptrace(PTRACE_CONT, child, 0, 0));
    for (;;) {
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0) break;
        if (!WIFSTOPPED(status)) {
            if (pid != child) continue;
            code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            break;
        }
        int sig = WSTOPSIG(status), event = status >> 16;
        unsigned long made;
        if (event == PTRACE_EVENT_EXEC) {
            if (!ours(pid)) {
                ptrace(PTRACE_DETACH, pid, 0, 0);
                continue;
            }
            arm(pid);
        } else if (event && left < 64 && ptrace(PTRACE_GETEVENTMSG, pid, 0, &made) == 0) others[left++] = (pid_t)made;
        if (event || sig == SIGSTOP || (sig == SIGTRAP && met(pid, out))) sig = 0;
        ptrace(PTRACE_CONT, pid, 0, (void *)(intptr_t)sig);
    }
    while (left > 0) {
        pid_t pid = others[--left];
        if (kill(pid, SIGSTOP) || waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) continue;
        while (WSTOPSIG(status) == SIGTRAP && met(pid, out)) {
            ptrace(PTRACE_CONT, pid, 0, 0);
            CHECK(waitpid(pid, &status, __WALL));
        }
        if (ours(pid)) memory(pid, 1, plain, last - first + 1, first);
        ptrace(PTRACE_DETACH, pid, 0, 0);
        kill(pid, SIGCONT);
    }
    return fclose(out) ? 1 : code;
}
