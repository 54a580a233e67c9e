// What the parts of the floor program share; floor.c says what the program is.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_HIERARCHIES 24
// The parent of all cgroups of the benchmark; the driver makes it.
#define GROUP "rrun-bench"

struct floor {
  const char *root, *bundle, *id;
  const char *filter; // file of a seccomp program; set: Docker's configuration, else the plain one
  int docker, safe, seal, v2, pure, trace, create;
  const char *skip;   // features to leave out, divided by commas
  int hierarchies;
  char hierarchy[MAX_HIERARCHIES][64];
  int procs[MAX_HIERARCHIES]; // open cgroup.procs of each
  int cgroup;                 // v2: the container's cgroup, else -1
};
extern struct floor f;

void die(const char *what);
int skip(const char *feature);
void mark(const char *phase); // one line of the time line
int write_file(int dir, const char *path, const char *value);
int read_file(const char *path, char *buffer, int size);

// Ends the program where a system call fails.
#define CK(x) ((long)(x) < 0 ? die(#x) : (void)0)

// cgroup.c
const char *cgroup_path(int hierarchy);
void cgroups_find(void);
void cgroups_create(void);
void cgroups_open(void);
void cgroups_join(void);
void cgroups_remove(void);

// rootfs.c: by paths, the least that works; rootfs_safe.c: by descriptors, as a runtime must
struct mount {
  const char *type, *source, *target;
  unsigned long flags;
  const char *data;
};
extern const struct mount mounts[];
extern const char *const readonly_paths[], *const masked_paths[], *const etc_files[];
extern const struct node { const char *name; int major, minor; } nodes[];
extern const char *const links[][2];
int wanted(const struct mount *m); // whether this configuration has the mount
void rootfs_by_path(void);
void rootfs_by_descriptor(void);
