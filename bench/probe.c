// The process of the benchmark's containers: no C library, a few pages of memory. Without arguments
// it ends at once; with one it waits to be killed.
// Build: cc -O2 -static -nostdlib -ffreestanding -fno-stack-protector -o probe probe.c
#include <asm/unistd.h>

static long call(long number, long a, long b) {
#if defined(__x86_64__)
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(number), "D"(a), "S"(b), "d"(0), "r"(0) : "rcx", "r11", "memory");
  return r;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = 0,
                x3 __asm__("x3") = 0, x4 __asm__("x4") = 0;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
  return x0;
#else
#error "the probe knows x86_64 and aarch64"
#endif
}

// ppoll of nothing, without a limit: it ends with a signal only.
__attribute__((used, noreturn)) static void begin(long *stack) {
  while (stack[0] > 1) call(__NR_ppoll, 0, 0);
  for (;;) call(__NR_exit_group, 0, 0);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#else
__asm__(".globl _start\n_start: mov x0, sp\n bl begin\n");
#endif
