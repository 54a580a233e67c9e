// The container's file system by plain paths and mount(2): the fewest calls that give the result.
#include "floor.h"
#include <sys/sysmacros.h>

#define SAFE (MS_NOSUID | MS_NOEXEC | MS_NODEV)

// The root file system's own folders exist in the bundle; the others are made here.
const struct mount mounts[] = {
    {"proc", "proc", "proc", 0, 0},
    {"tmpfs", "tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"},
    {"devpts", "devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
    {"tmpfs", "shm", "dev/shm", SAFE, "mode=1777,size=65536k"},
    {"mqueue", "mqueue", "dev/mqueue", SAFE, 0},
    {"sysfs", "sysfs", "sys", SAFE | MS_RDONLY, 0},
    {0},
};
const char *const readonly_paths[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", 0};
const char *const masked_paths[] = {"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                                    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", 0};
const char *const etc_files[] = {"resolv.conf", "hostname", "hosts", 0};
const struct node nodes[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}, {0}};
const char *const links[][2] = {
    {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}, {0}};

int wanted(const struct mount *m) {
  if (!f.skip) return 1;
  const char *name = strrchr(m->target, '/');
  if (skip(name ? name + 1 : m->target)) return 0;
  return strncmp(m->target, "dev/", 4) || !skip("dev");
}

static void read_only(const char *path) {
  if (mount(path, path, 0, MS_BIND | MS_REC, 0) < 0) {
    if (errno == ENOENT) return;
    die(path);
  }
  CK(mount(0, path, 0, MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE, 0));
}

// All masked folders share one empty read-only tmpfs.
static void mask(const char *path) {
  static const char *empty;
  if (mount("/dev/null", path, 0, MS_BIND, 0) == 0 || errno == ENOENT) return;
  if (errno != ENOTDIR) die(path);
  if (empty) CK(mount(empty, path, 0, MS_BIND, 0));
  else CK(mount("tmpfs", path, "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1"));
  empty = empty ? empty : path;
}

static void cgroup_mounts(void) {
  char path[128];
  if (skip("cg") || skip("cgmnt")) return;
  if (f.v2) {
    CK(unshare(CLONE_NEWCGROUP));
    CK(mount("cgroup", "sys/fs/cgroup", "cgroup2", SAFE | MS_RDONLY, 0));
    return;
  }
  CK(mount("tmpfs", "sys/fs/cgroup", "tmpfs", SAFE, "mode=755"));
  for (int i = 0; i < f.hierarchies; i++) {
    snprintf(path, sizeof path, "sys/fs/cgroup/%s", f.hierarchy[i]);
    CK(mkdir(path, 0755));
    CK(mount(cgroup_path(i), path, 0, MS_BIND, 0));
    CK(mount(0, path, 0, MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE, 0));
  }
  CK(mount(0, "sys/fs/cgroup", 0, MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE, 0));
}

static void device_nodes(void) {
  char path[64];
  if (skip("dev") || skip("nodes")) return;
  for (const struct node *n = nodes; n->name; n++) {
    snprintf(path, sizeof path, "dev/%s", n->name);
    CK(mknod(path, S_IFCHR | 0666, makedev(n->major, n->minor)));
  }
  for (int i = 0; links[i][0]; i++) {
    snprintf(path, sizeof path, "dev/%s", links[i][1]);
    CK(symlink(links[i][0], path));
  }
}

void rootfs_by_path(void) {
  char path[4096];
  int etc[4];
  CK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
  snprintf(path, sizeof path, "%s/rootfs", f.bundle);
  CK(mount(path, path, 0, MS_BIND | MS_REC, 0));
  for (int i = 0; f.docker && etc_files[i]; i++) {
    snprintf(path, sizeof path, "%s/%s", f.bundle, etc_files[i]);
    CK(etc[i] = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
  }
  snprintf(path, sizeof path, "%s/rootfs", f.bundle);
  CK(chdir(path));
  mark("private, bind the root file system");
  for (const struct mount *m = mounts; m->type; m++) {
    if (!wanted(m)) continue;
    if (!strncmp(m->target, "dev/", 4)) CK(mkdir(m->target, 0755));
    CK(mount(m->source, m->target, m->type, m->flags | (f.docker && m == mounts ? SAFE : 0), m->data));
    mark(m->target);
  }
  device_nodes();
  mark("device nodes and links");
  if (!skip("sys")) cgroup_mounts();
  mark("cgroup mounts");
  CK(syscall(SYS_pivot_root, ".", "."));
  CK(umount2(".", MNT_DETACH));
  CK(chdir("/"));
  mark("pivot_root, detach the old root");
  for (int i = 0; f.docker && etc_files[i]; i++) {
    snprintf(path, sizeof path, "/etc/%s", etc_files[i]);
    CK(syscall(SYS_move_mount, etc[i], "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH));
    close(etc[i]);
  }
  if (f.docker && !skip("proc")) {
    CK(write_file(AT_FDCWD, "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"));
    CK(write_file(AT_FDCWD, "/proc/sys/net/ipv4/ping_group_range", "0 2147483647"));
    mark("sysctls");
  }
  for (int i = 0; readonly_paths[i] && !skip("ro") && !skip("proc"); i++) read_only(readonly_paths[i]);
  mark("read-only paths");
  for (int i = 0; masked_paths[i] && !skip("mask") && !skip("proc") && !skip("nodes") && !skip("dev"); i++) mask(masked_paths[i]);
  mark("masked paths");
}
