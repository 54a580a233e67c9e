//! What Docker's seccomp profile costs: compiling it and loading it, by our layout and libseccomp's.
//!
//! `cargo run --release --example seccomp [ROUNDS]`; times are medians in microseconds. Each load
//! runs in a process of its own.

#[path = "../src/seccomp/tests/docker.rs"]
mod docker;

use libc::sock_filter;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::wait::{WaitStatus, waitpid};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompOperator as Operator};
use rrun::{seccomp, sys};
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(201), |n| n.parse())?;
    let profile = docker::profile();
    let ours = seccomp::compile(&profile)?;
    let compile = median(rounds, || {
        let start = Instant::now();
        seccomp::compile(&profile).map(|_| micros(start))
    })?;
    let theirs: Vec<_> =
        [1, 2].into_iter().map(|layout| Ok((layout, libseccomp_program(&profile, layout)?))).collect::<anyhow::Result<_>>()?;
    let build = median(rounds, || {
        let start = Instant::now();
        libseccomp_program(&profile, 2).map(|_| micros(start))
    })?;
    println!("compile: {compile} us; libseccomp, tree: {build} us");
    let mut times = vec![Vec::new(); 1 + theirs.len()];
    for _ in 0..rounds {
        times[0].push(load(&ours.program)?);
        for (i, (_, program)) in theirs.iter().enumerate() {
            times[1 + i].push(load(program)?);
        }
    }
    let labels = ["load: ours".to_string(), "load: libseccomp, default".into(), "load: libseccomp, tree".into()];
    let lengths = [ours.program.len(), theirs[0].1.len(), theirs[1].1.len()];
    for ((label, length), mut times) in labels.iter().zip(lengths).zip(times) {
        times.sort_unstable();
        println!("{label}: {} us (p10 {}), {length} instructions", times[times.len() / 2], times[times.len() / 10]);
    }
    Ok(())
}

fn micros(start: Instant) -> u64 {
    start.elapsed().as_micros() as u64
}

fn median(rounds: usize, mut once: impl FnMut() -> anyhow::Result<u64>) -> anyhow::Result<u64> {
    let mut times = (0..rounds).map(|_| once()).collect::<anyhow::Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times[rounds / 2])
}

/// How long the load takes in a new process, which reports over a pipe.
fn load(program: &[sock_filter]) -> anyhow::Result<u64> {
    use std::io::Read;
    let (mut read, write) = std::io::pipe()?;
    match sys::clone(0, None)? {
        sys::Cloned::Child => {
            let start = Instant::now();
            let loaded = sys::seccomp_load(program, 0);
            let time = micros(start).to_ne_bytes();
            let _ = sys::write(std::os::fd::AsFd::as_fd(&write), &time);
            sys::exit_now(i32::from(loaded.is_err()))
        }
        sys::Cloned::Parent(pid, _) => {
            let mut time = [0; 8];
            read.read_exact(&mut time)?;
            let status = waitpid(nix::unistd::Pid::from_raw(pid), None)?;
            anyhow::ensure!(matches!(status, WaitStatus::Exited(_, 0)), "the load failed: {status:?}");
            Ok(u64::from_ne_bytes(time))
        }
    }
}

fn libseccomp_program(profile: &LinuxSeccomp, layout: u32) -> anyhow::Result<Vec<sock_filter>> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(1))?;
    filter.set_ctl_optimize(layout)?;
    filter.add_arch(ScmpArch::X86)?.add_arch(ScmpArch::X32)?;
    for call in profile.syscalls().iter().flatten() {
        let action = match call.action() {
            Action::ScmpActAllow => ScmpAction::Allow,
            _ => ScmpAction::Errno(38),
        };
        let args = call.args().iter().flatten().map(|arg| {
            let (op, value) = match arg.op() {
                Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
                Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
                Operator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0)),
                _ => (ScmpCompareOp::Equal, arg.value()),
            };
            ScmpArgCompare::new(arg.index() as u32, op, value)
        });
        let args: Vec<_> = args.collect();
        for name in call.names() {
            if let Ok(number) = ScmpSyscall::from_name(name) {
                filter.add_rule_conditional(action, number, &args)?;
            }
        }
    }
    let file = nix::sys::memfd::memfd_create(c"bpf", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    filter.export_bpf(&file)?;
    let bytes = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))?;
    let instruction = |b: &[u8]| sock_filter {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    };
    Ok(bytes.chunks_exact(8).map(instruction).collect())
}
