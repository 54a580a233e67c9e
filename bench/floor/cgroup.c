// The container's cgroups: made, set up as the configuration says, joined, removed.
#include "floor.h"
#include <linux/bpf.h>

#define V2 "/sys/fs/cgroup"

const char *cgroup_path(int i) {
  static char path[256];
  if (f.v2) snprintf(path, sizeof path, "%s/%s/%s", V2, GROUP, f.id);
  else snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s/%s", f.hierarchy[i], GROUP, f.id);
  return path;
}

void cgroups_find(void) {
  char text[4096];
  f.cgroup = -1;
  if (f.v2) return;
  CK(read_file("/proc/self/cgroup", text, sizeof text));
  for (char *line = strtok(text, "\n"); line && f.hierarchies < MAX_HIERARCHIES; line = strtok(0, "\n")) {
    char *name = strchr(line, ':') + 1, *end = strchr(name, ':');
    *end = 0;
    if (!*name && f.pure) continue;
    if (!*name) name = "unified";
    else if (!strncmp(name, "name=", 5)) name += 5;
    snprintf(f.hierarchy[f.hierarchies++], sizeof f.hierarchy[0], "%s", name);
  }
}

// v2 has no devices controller: a program on the cgroup decides. Allowed: mknod, and the usual nodes.
static void devices_program(int cgroup) {
  enum { LOAD = 0x61, JEQ = 0x15, JNE = 0x55, AND = 0x54, RSH = 0x74, SET = 0xb7, COPY = 0xbf, EXIT = 0x95 };
  static const int allowed[][2] = {{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}};
  struct bpf_insn p[64];
  int n = 0;
#define I(c, d, s, o, i) p[n++] = (struct bpf_insn){.code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i}
  I(LOAD, 2, 1, 0, 0), I(COPY, 3, 2, 0, 0), I(AND, 2, 0, 0, 0xffff), I(RSH, 3, 0, 0, 16);
  I(LOAD, 4, 1, 4, 0), I(LOAD, 5, 1, 8, 0);
  I(JNE, 3, 0, 2, 1), I(SET, 0, 0, 0, 1), I(EXIT, 0, 0, 0, 0); // mknod
  I(JEQ, 2, 0, 2, 2), I(SET, 0, 0, 0, 0), I(EXIT, 0, 0, 0, 0); // no character device
  for (unsigned k = 0; k < sizeof allowed / sizeof *allowed; k++) {
    I(JNE, 4, 0, allowed[k][1] < 0 ? 2 : 3, allowed[k][0]);
    if (allowed[k][1] >= 0) I(JNE, 5, 0, 2, allowed[k][1]);
    I(SET, 0, 0, 0, 1), I(EXIT, 0, 0, 0, 0);
  }
  I(SET, 0, 0, 0, 0), I(EXIT, 0, 0, 0, 0);
  union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insn_cnt = n};
  load.insns = (unsigned long)p, load.license = (unsigned long)"GPL";
  int program = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
  CK(program);
  union bpf_attr attach = {0};
  attach.target_fd = cgroup, attach.attach_bpf_fd = program;
  attach.attach_type = BPF_CGROUP_DEVICE, attach.attach_flags = BPF_F_ALLOW_MULTI;
  CK(syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach));
  close(program);
}

static void devices_rules(int dir) {
  static const char *const rules[] = {"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm",
                                      "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"};
  CK(write_file(dir, "devices.deny", "a"));
  int allow = openat(dir, "devices.allow", O_WRONLY | O_CLOEXEC);
  CK(allow);
  for (unsigned k = 0; k < sizeof rules / sizeof *rules; k++) CK(write(allow, rules[k], strlen(rules[k])));
  close(allow);
}

static void limits(const char *controller, int dir) {
  char text[128];
  if (!strcmp(controller, "cpuset")) {
    CK(read_file("/sys/fs/cgroup/cpuset/" GROUP "/cpuset.cpus", text, sizeof text)), CK(write_file(dir, "cpuset.cpus", text));
    CK(read_file("/sys/fs/cgroup/cpuset/" GROUP "/cpuset.mems", text, sizeof text)), CK(write_file(dir, "cpuset.mems", text));
  } else if (!strcmp(controller, "devices")) {
    devices_rules(dir);
  } else if (!strcmp(controller, "cpu")) {
    CK(write_file(dir, "cpu.shares", "512"));
    CK(write_file(dir, "cpu.cfs_period_us", "100000")), CK(write_file(dir, "cpu.cfs_quota_us", "50000"));
  } else if (!strcmp(controller, "memory")) {
    CK(write_file(dir, "memory.limit_in_bytes", "268435456"));
    // Only where swap is accounted for; its absence is no error of the benchmark.
    write_file(dir, "memory.memsw.limit_in_bytes", "536870912");
  } else if (!strcmp(controller, "pids")) {
    CK(write_file(dir, "pids.max", "100"));
  }
}

void cgroups_create(void) {
  if (skip("cg")) return;
  if (f.v2) {
    CK(mkdir(cgroup_path(0), 0755));
    CK(f.cgroup = open(cgroup_path(0), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!skip("cgdev")) devices_program(f.cgroup);
    return;
  }
  for (int i = 0; i < f.hierarchies; i++) {
    const char *path = cgroup_path(i), *name = f.hierarchy[i];
    CK(mkdir(path, 0755));
    int cpuset = !strcmp(name, "cpuset"), devices = !strcmp(name, "devices") && !skip("cgdev");
    int limited = f.docker && (!strcmp(name, "cpu") || !strcmp(name, "memory") || !strcmp(name, "pids"));
    // A process cannot join a cpuset that is empty: that part is never left out.
    if (!cpuset && (skip("cgset") || (!devices && !limited))) continue;
    int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    CK(dir);
    limits(name, dir);
    close(dir);
  }
}

void cgroups_open(void) {
  if (skip("cg") || skip("cgjoin") || f.v2) return;
  for (int i = 0; i < f.hierarchies; i++) {
    char path[300];
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup_path(i));
    CK(f.procs[i] = open(path, O_WRONLY | O_CLOEXEC));
  }
}

void cgroups_join(void) {
  if (skip("cg") || skip("cgjoin") || f.v2) return;
  for (int i = 0; i < f.hierarchies; i++) CK(write(f.procs[i], "0", 1));
}

void cgroups_remove(void) {
  if (skip("cg") || skip("cgrm")) return;
  for (int i = 0; i < (f.v2 ? 1 : f.hierarchies); i++)
    for (int tries = 0; rmdir(cgroup_path(i)) < 0 && errno == EBUSY && tries < 1000; tries++) usleep(100);
}
