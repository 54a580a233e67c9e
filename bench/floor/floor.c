// floor: the kernel work of a container's life and nothing else. A static binary with a runtime's
// command line; the configuration is hard coded, so no JSON is parsed and nothing is checked.
//
//   floor [FLAGS] --root DIR run|create -b BUNDLE ID COMMAND... | start ID | exec ID COMMAND... |
//                            state ID | kill ID SIGNAL | delete ID | list
//   --docker FILE  Docker's configuration instead of the plain one; FILE: its seccomp program, or -
//   --safe         resolve each target by openat2, attach detached mounts, read config.json
//   --seal         run, create, exec: start again from a read-only copy of the binary's mount
//   --v2           the hierarchy at /sys/fs/cgroup; else those of /proc/self/cgroup, as v1
//   --pure         without the unified hierarchy beside v1
//   --skip A,B     leave features out: net ipc uts pid lo cg cgjoin cgset cgdev cgrm cgmnt proc sys
//                  dev nodes pts shm mqueue ro mask caps seccomp keyring rlimit mounts
//   --trace        the time of each phase, in microseconds, on standard error
// Build: cc -O2 -static -o floor floor.c cgroup.c rootfs.c rootfs_safe.c
#include "floor.h"
#include <dirent.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

struct floor f = {.root = "/run/floor", .cgroup = -1};
static char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", 0};
static char **command, state_dir[512];
static struct sock_filter filter[4096];
static int filter_length, container = -1, ready[2] = {-1, -1}, fifo_dir = -1;
static char stack[64 * 1024] __attribute__((aligned(16)));

void die(const char *what) {
  dprintf(2, "floor: %s: %s\n", what, strerror(errno));
  _exit(1);
}

int skip(const char *feature) {
  size_t n = strlen(feature);
  for (const char *p = f.skip; p && *p;) {
    size_t k = strcspn(p, ",");
    if (k == n && !memcmp(p, feature, n)) return 1;
    p += k + (p[k] == ',');
  }
  return 0;
}

void mark(const char *phase) {
  static double last;
  struct timespec t;
  if (!f.trace) return;
  clock_gettime(CLOCK_MONOTONIC, &t);
  double now = t.tv_sec * 1e6 + t.tv_nsec / 1e3;
  if (last > 0) dprintf(2, "%9.1f us  %s\n", now - last, phase);
  clock_gettime(CLOCK_MONOTONIC, &t);
  last = t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int write_file(int dir, const char *path, const char *value) {
  int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  int r = write(fd, value, strlen(value));
  close(fd);
  return r;
}

int read_file(const char *path, char *buffer, int size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  int r = read(fd, buffer, size - 1);
  close(fd);
  if (r >= 0) buffer[r] = 0;
  return r;
}

// ---- the container's process ---------------------------------------------------------------------

static void privileges(void) {
  static const int plain[] = {CAP_AUDIT_WRITE, CAP_KILL, CAP_NET_BIND_SERVICE, -1};
  static const int docker[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FSETID, CAP_FOWNER, CAP_MKNOD, CAP_NET_RAW, CAP_SETGID, CAP_SETUID,
                               CAP_SETFCAP, CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT, CAP_KILL, CAP_AUDIT_WRITE, -1};
  struct rlimit files = {1024, 1024};
  unsigned long long keep = 0;
  for (const int *c = f.docker ? docker : plain; *c >= 0; c++) keep |= 1ull << *c;
  if (!f.docker && !skip("rlimit")) CK(setrlimit(RLIMIT_NOFILE, &files));
  // Docker sets no no_new_privs: its filter is loaded while CAP_SYS_ADMIN is there.
  struct sock_fprog program = {filter_length, filter};
  if (filter_length && !skip("seccomp")) CK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
  CK(setgroups(0, 0));
  CK(syscall(SYS_setresgid, 0, 0, 0));
  CK(syscall(SYS_setresuid, 0, 0, 0));
  if (!skip("caps")) {
    for (int c = 0; c <= CAP_LAST_CAP; c++)
      if (!(keep >> c & 1)) CK(prctl(PR_CAPBSET_DROP, c, 0, 0, 0));
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{keep, keep, 0}, {keep >> 32, keep >> 32, 0}};
    CK(syscall(SYS_capset, &head, sets));
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  }
  if (!f.docker) CK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void loopback_up(void) {
  struct ifreq r = {0};
  int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  strcpy(r.ifr_name, "lo");
  r.ifr_flags = IFF_UP;
  CK(ioctl(s, SIOCSIFFLAGS, &r));
  close(s);
}

static void execute(void) {
  syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
  execve(command[0], command, environment);
  die("execve");
}

static int init(void *unused) {
  (void)unused;
  char c = 0;
  mark("clone3 until the child runs");
  cgroups_join();
  mark("join cgroups");
  CK(setsid());
  if (!skip("keyring")) syscall(SYS_keyctl, 1 /* join a session keyring */, "_ses");
  if (!skip("lo") && !skip("net")) loopback_up();
  mark("loopback up");
  if (!skip("uts")) CK(sethostname("bench", 5));
  umask(0);
  if (!skip("mounts")) f.safe ? rootfs_by_descriptor() : rootfs_by_path();
  umask(022);
  if (f.create) {
    privileges();
    CK(write(ready[1], &c, 1));
    int gate = openat(fifo_dir, "exec.fifo", O_RDONLY); // waits until start opens the other end
    CK(gate);
    CK(read(gate, &c, 1));
  } else {
    privileges();
    mark("privileges, seccomp");
  }
  execute();
  return 1;
}

static int exec_process(void *unused) {
  (void)unused;
  cgroups_join();
  mark("join cgroups");
  // Not before: from inside the namespace the caller's own cgroup is out of sight, and moving is refused.
  if (f.v2 && !skip("cgmnt")) CK(setns(container, CLONE_NEWCGROUP));
  CK(setsid());
  CK(chdir("/"));
  if (!skip("keyring")) syscall(SYS_keyctl, 1, "_ses");
  privileges();
  execute();
  return 1;
}

// A child that shares this memory (nothing is copied) on a stack of its own.
static pid_t spawn(int flags, int *pidfd, int (*run)(void *)) {
  struct clone_args a = {.flags = flags | CLONE_PIDFD | CLONE_VM, .exit_signal = SIGCHLD};
  a.pidfd = (unsigned long)pidfd, a.stack = (unsigned long)stack, a.stack_size = sizeof stack;
  if (f.cgroup >= 0) a.flags |= CLONE_INTO_CGROUP, a.cgroup = f.cgroup;
  long r;
#if defined(__x86_64__)
  __asm__ volatile("syscall\n test %%rax,%%rax\n jnz 1f\n xor %%ebp,%%ebp\n xor %%edi,%%edi\n and $-16,%%rsp\n call *%[run]\n"
                   " mov %%eax,%%edi\n mov $60,%%eax\n syscall\n 1:\n"
                   : "=a"(r)
                   : "a"((long)SYS_clone3), "D"(&a), "S"(sizeof a), [run] "r"(run)
                   : "rcx", "r11", "memory");
#else
  // Elsewhere the memory is copied, which needs no assembly.
  a.flags &= ~(CLONE_VM | CLONE_VFORK), a.stack = a.stack_size = 0;
  r = syscall(SYS_clone3, &a, sizeof a);
  if (r == 0) _exit(run(0));
  if (r < 0) r = -errno;
#endif
  if (r < 0) errno = -r, r = -1;
  return r;
}

static int namespaces(void) {
  return CLONE_NEWNS | (skip("net") ? 0 : CLONE_NEWNET) | (skip("ipc") ? 0 : CLONE_NEWIPC) | (skip("uts") ? 0 : CLONE_NEWUTS) |
         (skip("pid") ? 0 : CLONE_NEWPID);
}

// ---- the record ----------------------------------------------------------------------------------

struct record {
  int pid;
  unsigned long long start;
  char bundle[512];
};

static unsigned long long start_time(int pid) {
  char path[32], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  if (read_file(path, text, sizeof text) < 0) return 0;
  char *p = strrchr(text, ')');
  if (!p || p[2] == 'Z') return 0;
  for (int i = 0; i < 20; i++) p = strchr(p + 1, ' ');
  return strtoull(p + 1, 0, 10);
}

static int alive(const struct record *r) { return start_time(r->pid) == r->start; }

static int load(struct record *r, const char *id) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s/state", f.root, id);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  int n = read(fd, r, sizeof *r);
  close(fd);
  return n == sizeof *r ? 0 : -1;
}

static void save(int pid) {
  struct record r = {.pid = pid, .start = start_time(pid)};
  char temporary[600], path[600];
  snprintf(r.bundle, sizeof r.bundle, "%s", f.bundle);
  snprintf(temporary, sizeof temporary, "%s/.state", state_dir), snprintf(path, sizeof path, "%s/state", state_dir);
  int fd = open(temporary, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  CK(write(fd, &r, sizeof r));
  close(fd);
  CK(rename(temporary, path));
}

static int forget(void) {
  char path[600];
  snprintf(path, sizeof path, "%s/state", state_dir);
  unlink(path);
  return rmdir(state_dir);
}

// ---- commands ------------------------------------------------------------------------------------

static int wait_for(int pid) {
  int status;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) die("waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void load_filter(void) {
  if (!f.filter || !strcmp(f.filter, "-")) return;
  int fd = open(f.filter, O_RDONLY | O_CLOEXEC);
  CK(fd);
  filter_length = read(fd, filter, sizeof filter) / sizeof *filter;
  close(fd);
}

static void read_config(void) {
  static char config[64 * 1024];
  char path[512];
  struct stat st;
  snprintf(path, sizeof path, "%s/config.json", f.bundle);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  CK(fd);
  CK(fstat(fd, &st));
  CK(read(fd, config, sizeof config));
  close(fd);
}

static int run(void) {
  int pidfd = -1;
  if (f.safe) read_config();
  load_filter();
  if (mkdir(state_dir, 0700) < 0 && errno == ENOENT) {
    mkdir(f.root, 0700);
    CK(mkdir(state_dir, 0700));
  }
  if (f.create) {
    CK(fifo_dir = open(state_dir, O_PATH | O_DIRECTORY | O_CLOEXEC));
    CK(mknodat(fifo_dir, "exec.fifo", S_IFIFO | 0600, 0));
    CK(pipe2(ready, O_CLOEXEC));
  }
  mark("begin");
  cgroups_find();
  cgroups_create();
  mark("make and set cgroups");
  cgroups_open();
  mark("open cgroup.procs");
  // The child of run has ended or become the container's process when clone3 returns.
  int pid = spawn(namespaces() | (f.create ? 0 : CLONE_VFORK), &pidfd, init);
  CK(pid);
  if (f.create) {
    char c;
    close(ready[1]);
    if (read(ready[0], &c, 1) != 1) return 1;
    save(pid);
    return 0;
  }
  mark("execve, the parent goes on");
  save(pid);
  mark("record");
  int code = wait_for(pid);
  mark("the process runs and ends");
  cgroups_remove();
  mark("remove cgroups");
  forget();
  mark("remove the record");
  return code;
}

static int exec(const struct record *r) {
  int pidfd;
  CK(container = syscall(SYS_pidfd_open, r->pid, 0));
  if (!alive(r)) return 1;
  load_filter();
  cgroups_find();
  cgroups_open();
  if (f.v2) CK(f.cgroup = open(cgroup_path(0), O_PATH | O_DIRECTORY | O_CLOEXEC));
  mark("open cgroups");
  CK(setns(container, namespaces()));
  mark("setns");
  int pid = spawn(CLONE_VFORK, &pidfd, exec_process);
  CK(pid);
  mark("execve, the parent goes on");
  return wait_for(pid);
}

static int start(void) {
  char path[600];
  snprintf(path, sizeof path, "%s/exec.fifo", state_dir);
  int gate = open(path, O_WRONLY | O_CLOEXEC);
  CK(gate);
  CK(write(gate, "0", 1));
  CK(unlink(path));
  return 0;
}

static int kill_process(const struct record *r, const char *signal) {
  int pidfd = syscall(SYS_pidfd_open, r->pid, 0);
  CK(pidfd);
  if (!alive(r)) return 1;
  CK(syscall(SYS_pidfd_send_signal, pidfd, signal ? atoi(signal) : SIGTERM, 0, 0));
  return 0;
}

static int delete(const struct record *r) {
  char path[600];
  if (alive(r)) return 1;
  cgroups_find();
  cgroups_remove();
  snprintf(path, sizeof path, "%s/exec.fifo", state_dir);
  unlink(path);
  return forget() < 0;
}

static int list(void) {
  struct record r;
  DIR *dir = opendir(f.root);
  for (struct dirent *e; dir && (e = readdir(dir));)
    if (*e->d_name != '.' && !load(&r, e->d_name)) printf("%s %d %s %s\n", e->d_name, r.pid, alive(&r) ? "running" : "stopped", r.bundle);
  return 0;
}

// A read-only copy of the mount this binary is on: what is inside cannot write to it (CVE-2019-5736).
static void seal(char **argv) {
  static char mark_[] = "FLOOR_SEALED=1";
  char *sealed[] = {mark_, 0};
  if (getenv("FLOOR_SEALED")) return;
  struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
  int exe = syscall(SYS_open_tree, AT_FDCWD, "/proc/self/exe", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  CK(exe);
  CK(syscall(SYS_mount_setattr, exe, "", AT_EMPTY_PATH, &read_only, sizeof read_only));
  syscall(SYS_execveat, exe, "", argv, sealed, AT_EMPTY_PATH);
  die("execveat");
}

int main(int argc, char **argv) {
  char *name = 0, *positional[64] = {0};
  int n = 0, wants_seal = 0;
  for (int i = 1; i < argc && n < 63; i++) {
    if (name && n) positional[n++] = argv[i];
    else if (!strcmp(argv[i], "--docker")) f.docker = 1, f.filter = argv[++i];
    else if (!strcmp(argv[i], "--safe")) f.safe = 1;
    else if (!strcmp(argv[i], "--seal")) wants_seal = 1;
    else if (!strcmp(argv[i], "--v2")) f.v2 = 1;
    else if (!strcmp(argv[i], "--pure")) f.pure = 1;
    else if (!strcmp(argv[i], "--trace")) f.trace = 1;
    else if (!strcmp(argv[i], "--skip")) f.skip = argv[++i];
    else if (!strcmp(argv[i], "--root")) f.root = argv[++i];
    else if (!strcmp(argv[i], "-b")) f.bundle = argv[++i];
    else if (!name) name = argv[i];
    else positional[n++] = argv[i];
  }
  if (!name || (!n && strcmp(name, "list"))) return 2;
  int creates = !strcmp(name, "run") || !strcmp(name, "create");
  if (wants_seal && (creates || !strcmp(name, "exec"))) seal(argv);
  mark("");
  f.id = n ? positional[0] : "";
  f.create = !strcmp(name, "create");
  command = positional + 1;
  snprintf(state_dir, sizeof state_dir, "%s/%s", f.root, f.id);
  if (creates) return run();
  if (!strcmp(name, "list")) return list();
  struct record r;
  CK(load(&r, f.id));
  if (!strcmp(name, "start")) return start();
  if (!strcmp(name, "exec")) return exec(&r);
  if (!strcmp(name, "kill")) return kill_process(&r, positional[1]);
  if (!strcmp(name, "delete")) return delete(&r);
  if (strcmp(name, "state")) return 2;
  printf("{\"ociVersion\":\"1.0.2\",\"id\":\"%s\",\"status\":\"%s\",\"pid\":%d,\"bundle\":\"%s\"}\n", f.id, alive(&r) ? "running" : "stopped", r.pid, r.bundle);
  return 0;
}
