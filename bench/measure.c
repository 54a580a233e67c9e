// measure: times command lines of several runtimes, interleaved, as whole processes from outside.
//
//   measure [-n TIMES] [-w WARMUP] [-k PRESENT] [-i IDLE_US] [-p WORKERS -r ROUNDS] [-t SECONDS] [-o CSV] PLAN
//
// A plan has one call per line, RUNTIME <TAB> STEP <TAB> FLAGS <TAB> COMMAND; an empty line ends a group.
// Each time every group runs all of its calls in order, the order of the groups is shuffled. In a command
// @ID@ is the container's id, @W@ the number of the worker (0: none). FLAGS, any of
//   t  record this call
//   r  afterwards wait until the container's processes have ended (they are this process's orphans)
//   i  a failure is no news
//   s  no call: write the id over the placeholder in the config.json of the bundle COMMAND
//   p  before everything, PRESENT times, in a process of its own; k, then d: the same after everything
// One CSV row per recorded call: runtime,step,time,wall_us,cpu_us,maxrss_kb,minor_faults,switches,status.
// With workers, one row per round: runtime,step,round,groups per second (CSV's other fields are 0).
// A child's maxrss starts from its parent's, so this program is small and static.
// Build: cc -O2 -static -o measure measure.c
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CALLS 512
#define ID_LENGTH 16

struct call {
  char runtime[32], step[32], flags[8], *command;
  int group;
};
static struct call calls[MAX_CALLS];
static int n_calls, n_groups, limit_s = 30, worker, failures;
static volatile pid_t running;
static FILE *out;
extern char **environ;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static double us(struct timeval t) { return t.tv_sec * 1e6 + t.tv_usec; }

static void too_long(int signal) {
  (void)signal;
  if (running > 0) kill(running, SIGKILL);
}

static int has(const struct call *c, char flag) { return strchr(c->flags, flag) != 0; }

static void expand(const char *from, char *to, const char *id) {
  while (*from) {
    if (!strncmp(from, "@ID@", 4)) to = stpcpy(to, id), from += 4;
    else if (!strncmp(from, "@W@", 3)) to += sprintf(to, "%d", worker), from += 3;
    else *to++ = *from++;
  }
  *to = 0;
}

// Puts the id where the placeholder was found, at the same offset each time.
static void stamp(const struct call *c, const char *id) {
  static struct { const struct call *call; int fd; off_t at; } files[MAX_CALLS];
  char path[4096], text[65536];
  int i = c - calls;
  if (!files[i].call) {
    expand(c->command, path, id);
    strcat(path, "/config.json");
    files[i].fd = open(path, O_RDWR | O_CLOEXEC);
    int n = pread(files[i].fd, text, sizeof text, 0);
    char *prefix = n > 0 ? memmem(text, n, "/rrun-bench/", 12) : 0;
    if (!prefix) {
      fprintf(stderr, "measure: %s has no cgroupsPath below /rrun-bench\n", path);
      exit(2);
    }
    files[i].at = prefix + 12 - text, files[i].call = c;
  }
  if (pwrite(files[i].fd, id, ID_LENGTH, files[i].at) != ID_LENGTH) perror("measure: stamp");
}

static void reap(void) {
  pid_t p;
  while ((p = wait4(-1, 0, 0, 0)) > 0 || (p < 0 && errno == EINTR)) continue;
}

static void call(struct call *c, const char *id, int time, int record) {
  char line[8192], *argv[128], *rest = line;
  int n = 0, status, other;
  if (has(c, 's')) return stamp(c, id);
  expand(c->command, line, id);
  while (n < 127 && (argv[n] = strsep(&rest, " ")))
    if (*argv[n]) n++;
  argv[n] = 0;
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
  struct rusage used, unused;
  double begin = now();
  if (posix_spawn((pid_t *)&running, argv[0], &files, 0, argv, environ)) {
    perror(argv[0]);
    exit(2);
  }
  alarm(limit_s);
  for (pid_t p; (p = wait4(-1, &other, 0, &unused)) != running;)
    if (p < 0 && errno != EINTR) exit(2);
  used = unused, status = other;
  double wall = now() - begin;
  if (has(c, 'r')) reap();
  alarm(0);
  posix_spawn_file_actions_destroy(&files);
  if (status && !has(c, 'i')) {
    if (failures++ < 20) fprintf(stderr, "measure: status %x: %s\n", status, line);
  }
  if (record && has(c, 't'))
    fprintf(out, "%s,%s,%d,%.1f,%.0f,%ld,%ld,%ld,%d\n", c->runtime, c->step, time, wall, us(used.ru_utime) + us(used.ru_stime), used.ru_maxrss,
            used.ru_minflt, used.ru_nvcsw + used.ru_nivcsw, status);
}

static void group(int g, int time, int record) {
  char id[ID_LENGTH + 1];
  snprintf(id, sizeof id, "b%03x%02u%02u%08u", getppid() & 0xfffu, worker % 100u, g % 100u, time % 100000000u);
  for (int k = 0; k < n_calls; k++)
    if (calls[k].group == g && !strpbrk(calls[k].flags, "pkd")) call(&calls[k], id, time, record);
}

static void each_present(int count, char flag) {
  char id[ID_LENGTH + 1];
  for (int i = 0; i < count; i++) {
    for (int k = 0; k < n_calls; k++) {
      snprintf(id, sizeof id, "p%03x%04u%08u", getpid() & 0xfffu, calls[k].group % 10000u, i % 100000000u);
      if (calls[k].flags[0] == flag) call(&calls[k], id, i, 0);
    }
  }
}

static void shuffle(int *order) {
  for (int g = 0; g < n_groups; g++) order[g] = g;
  for (int g = n_groups - 1; g > 0; g--) {
    int j = rand() % (g + 1), x = order[g];
    order[g] = order[j], order[j] = x;
  }
}

static void one_at_a_time(int times, int warmup, int idle_us) {
  int order[MAX_CALLS];
  for (int i = 0; i < times + warmup; i++) {
    shuffle(order);
    for (int g = 0; g < n_groups; g++) {
      if (idle_us) usleep(idle_us);
      group(order[g], i, i >= warmup);
    }
  }
}

static void at_once(int workers, int times, int rounds) {
  int order[MAX_CALLS];
  for (int round = 0; round < rounds; round++) {
    shuffle(order);
    for (int g = 0; g < n_groups; g++) {
      double begin = now();
      for (int w = 1; w <= workers; w++) {
        if (fork()) continue;
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        worker = w;
        for (int i = 0; i < times; i++) group(order[g], round * times + i, 0);
        _exit(failures > 0);
      }
      reap();
      double seconds = (now() - begin) / 1e6;
      for (int k = 0; k < n_calls; k++)
        if (calls[k].group == order[g] && has(&calls[k], 't')) {
          fprintf(out, "%s,rate%d.%s,%d,%.1f,0,0,0,0,0\n", calls[k].runtime, workers, calls[k].step, round, times * workers / seconds);
          break;
        }
    }
  }
}

static void read_plan(const char *path) {
  char line[8192];
  FILE *plan = fopen(path, "r");
  if (!plan) {
    perror(path);
    exit(2);
  }
  int fresh = 1;
  while (fgets(line, sizeof line, plan)) {
    char *runtime = strtok(line, "\t\n"), *step = strtok(0, "\t\n"), *flags = strtok(0, "\t\n"), *command = strtok(0, "\t\n");
    if (!command || n_calls == MAX_CALLS) {
      fresh = 1;
      continue;
    }
    struct call *c = &calls[n_calls++];
    snprintf(c->runtime, sizeof c->runtime, "%s", runtime), snprintf(c->step, sizeof c->step, "%s", step);
    snprintf(c->flags, sizeof c->flags, "%s", flags);
    c->command = strdup(command), c->group = (n_groups += fresh) - 1;
    fresh = 0;
  }
  fclose(plan);
}

int main(int argc, char **argv) {
  static char buffer[1 << 16];
  int times = 100, warmup = 3, present = 0, idle_us = 0, workers = 0, rounds = 1, status = 0;
  out = stdout;
  for (int c; (c = getopt(argc, argv, "n:w:k:i:p:r:t:o:")) != -1;) switch (c) {
    case 'n': times = atoi(optarg); break;
    case 'w': warmup = atoi(optarg); break;
    case 'k': present = atoi(optarg); break;
    case 'i': idle_us = atoi(optarg); break;
    case 'p': workers = atoi(optarg); break;
    case 'r': rounds = atoi(optarg); break;
    case 't': limit_s = atoi(optarg); break;
    case 'o': if (!(out = fopen(optarg, "a"))) return perror(optarg), 2; break;
    default: return 2;
    }
  if (optind >= argc) return fputs("measure: no plan\n", stderr), 2;
  setvbuf(out, buffer, _IOFBF, sizeof buffer);
  read_plan(argv[optind]);
  signal(SIGALRM, too_long);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  srand(time(0));
  each_present(present, 'p');
  // The containers that are just there are this process's children; the measured ones another's.
  pid_t measuring = fork();
  if (measuring == 0) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    workers ? at_once(workers, times, rounds) : one_at_a_time(times, warmup, idle_us);
    fclose(out);
    _exit(failures > 0);
  }
  while (waitpid(measuring, &status, 0) < 0 && errno == EINTR) continue;
  each_present(present, 'k');
  reap();
  each_present(present, 'd');
  return status || failures;
}
