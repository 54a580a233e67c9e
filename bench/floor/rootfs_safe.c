// The same file system as a safe runtime has to make it: every target is resolved by openat2 under
// the root's descriptor, every mount is built detached and attached to the descriptor it was checked by.
#include "floor.h"
#include <linux/openat2.h>
#include <sys/sysmacros.h>

#define ATTR_SAFE (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV)
static int root = -1;

static int resolve(const char *path) {
  struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
  return syscall(SYS_openat2, root, path, &how, sizeof how);
}

// Attaches a detached mount to a resolved target; both descriptors are closed.
static void attach(int tree, int target) {
  CK(tree), CK(target);
  CK(syscall(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  close(target);
  close(tree);
}

static int clone_tree(int dir, const char *path, int recursive, unsigned long attributes) {
  int flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (*path ? 0 : AT_EMPTY_PATH) | (recursive ? AT_RECURSIVE : 0);
  int tree = syscall(SYS_open_tree, dir, path, flags);
  CK(tree);
  struct mount_attr a = {.attr_set = attributes};
  if (attributes) CK(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &a, sizeof a));
  return tree;
}

// A detached mount of a new file system; data as in mount(2).
static int new_mount(const char *type, const char *source, const char *data, unsigned long attributes) {
  char text[128];
  int fs = syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
  CK(fs);
  CK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", source, 0));
  snprintf(text, sizeof text, "%s", data ? data : "");
  for (char *key = strtok(text, ","); key; key = strtok(0, ",")) {
    char *value = strchr(key, '=');
    if (value) *value++ = 0;
    CK(syscall(SYS_fsconfig, fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, key, value, 0));
  }
  CK(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0));
  int tree = syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes);
  CK(tree);
  close(fs);
  return tree;
}

static unsigned long attributes(unsigned long flags) {
  return (flags & MS_NOSUID ? MOUNT_ATTR_NOSUID : 0) | (flags & MS_NOEXEC ? MOUNT_ATTR_NOEXEC : 0) |
         (flags & MS_NODEV ? MOUNT_ATTR_NODEV : 0) | (flags & MS_RDONLY ? MOUNT_ATTR_RDONLY : 0) |
         (flags & MS_STRICTATIME ? MOUNT_ATTR_STRICTATIME : 0);
}

static void device_nodes(int dev) {
  if (skip("nodes")) return;
  for (const struct node *n = nodes; n->name; n++) CK(mknodat(dev, n->name, S_IFCHR | 0666, makedev(n->major, n->minor)));
  for (int i = 0; links[i][0]; i++) CK(symlinkat(links[i][0], dev, links[i][1]));
}

static void cgroup_mounts(void) {
  char path[128];
  if (skip("cg") || skip("cgmnt")) return;
  if (f.v2) {
    CK(unshare(CLONE_NEWCGROUP));
    attach(new_mount("cgroup2", "cgroup", 0, ATTR_SAFE | MOUNT_ATTR_RDONLY), resolve("sys/fs/cgroup"));
    return;
  }
  int all = new_mount("tmpfs", "tmpfs", "mode=755", ATTR_SAFE);
  for (int i = 0; i < f.hierarchies; i++) CK(mkdirat(all, f.hierarchy[i], 0755));
  struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
  CK(syscall(SYS_mount_setattr, all, "", AT_EMPTY_PATH, &read_only, sizeof read_only));
  attach(all, resolve("sys/fs/cgroup"));
  for (int i = 0; i < f.hierarchies; i++) {
    snprintf(path, sizeof path, "sys/fs/cgroup/%s", f.hierarchy[i]);
    attach(clone_tree(AT_FDCWD, cgroup_path(i), 0, ATTR_SAFE | MOUNT_ATTR_RDONLY), resolve(path));
  }
}

static void read_only(const char *path) {
  int target = resolve(path);
  if (target < 0 && errno == ENOENT) return;
  CK(target);
  attach(clone_tree(target, "", 1, ATTR_SAFE | MOUNT_ATTR_RDONLY), target);
}

static void mask(const char *path, int null) {
  static int empty = -1;
  struct stat st;
  int target = resolve(path);
  if (target < 0 && errno == ENOENT) return;
  CK(target);
  CK(fstat(target, &st));
  if (!S_ISDIR(st.st_mode)) return attach(clone_tree(null, "", 0, 0), target);
  int first = empty < 0;
  if (first) empty = new_mount("tmpfs", "tmpfs", "nr_blocks=1,nr_inodes=1", MOUNT_ATTR_RDONLY);
  attach(first ? fcntl(empty, F_DUPFD_CLOEXEC, 3) : clone_tree(empty, "", 0, 0), target);
}

static void masks(void) {
  struct stat st;
  if (skip("mask") || skip("proc") || skip("dev") || skip("nodes")) return;
  int null = resolve("dev/null");
  CK(null);
  CK(fstat(null, &st));
  if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3)) die("dev/null is not the null device");
  for (int i = 0; masked_paths[i]; i++) mask(masked_paths[i], null);
  close(null);
}

// The sysctls of Docker's configuration, through a procfs of our own that nothing can be mounted over.
static void sysctls(void) {
  if (!f.docker || skip("proc")) return;
  int proc = new_mount("proc", "proc", 0, ATTR_SAFE);
  struct open_how how = {.flags = O_WRONLY | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
  static const char *const values[][2] = {{"sys/net/ipv4/ip_unprivileged_port_start", "0"}, {"sys/net/ipv4/ping_group_range", "0 2147483647"}};
  for (int i = 0; i < 2; i++) {
    int file = syscall(SYS_openat2, proc, values[i][0], &how, sizeof how);
    CK(file);
    CK(write(file, values[i][1], strlen(values[i][1])));
    close(file);
  }
  close(proc);
}

void rootfs_by_descriptor(void) {
  char path[4096];
  struct mount_attr private = {.propagation = MS_PRIVATE};
  CK(syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &private, sizeof private));
  snprintf(path, sizeof path, "%s/rootfs", f.bundle);
  root = clone_tree(AT_FDCWD, path, 1, 0);
  CK(syscall(SYS_move_mount, root, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH));
  mark("private, bind the root file system");
  for (const struct mount *m = mounts; m->type; m++) {
    if (!wanted(m)) continue;
    unsigned long flags = m->flags | (f.docker && m == mounts ? MS_NOSUID | MS_NOEXEC | MS_NODEV : 0);
    int tree = new_mount(m->type, m->source, m->data, attributes(flags));
    if (!strcmp(m->target, "dev")) {
      for (const struct mount *sub = mounts; sub->type; sub++)
        if (!strncmp(sub->target, "dev/", 4) && wanted(sub)) CK(mkdirat(tree, sub->target + 4, 0755));
      device_nodes(tree);
    }
    attach(tree, resolve(m->target));
    mark(m->target);
  }
  for (int i = 0; f.docker && etc_files[i]; i++) {
    char target[64];
    snprintf(path, sizeof path, "%s/%s", f.bundle, etc_files[i]), snprintf(target, sizeof target, "etc/%s", etc_files[i]);
    attach(clone_tree(AT_FDCWD, path, 1, 0), resolve(target));
  }
  if (!skip("sys")) cgroup_mounts();
  mark("cgroup mounts");
  sysctls();
  for (int i = 0; readonly_paths[i] && !skip("ro") && !skip("proc"); i++) read_only(readonly_paths[i]);
  mark("read-only paths");
  masks();
  mark("masked paths");
  CK(fchdir(root));
  CK(syscall(SYS_pivot_root, ".", "."));
  CK(umount2(".", MNT_DETACH));
  CK(chdir("/"));
  mark("pivot_root, detach the old root");
}
