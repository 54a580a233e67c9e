//! A backend of plain processes and the host's own ports, for the tests here and for integration/streams.

use std::os::fd::OwnedFd;
use std::process::Stdio;

use anyhow::Context;
use rrun_cri::streaming::{Attach, Backend, Exec, Process, Streams, dial};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// An exec runs its command; an attach runs the container's name with `sh -c`; a pod is `host` or the path of a network
/// namespace.
pub(crate) struct Plain;

impl Backend for Plain {
    async fn exec(&self, request: Exec) -> anyhow::Result<Process> {
        start(&request.command, request.streams)
    }

    async fn attach(&self, request: Attach) -> anyhow::Result<Process> {
        start(&["sh".into(), "-c".into(), request.container], request.streams)
    }

    async fn port_forward(&self, pod: &str, port: u16) -> anyhow::Result<OwnedFd> {
        dial::localhost((pod != "host").then_some(pod.as_ref()), port).await
    }
}

fn start(command: &[String], streams: Streams) -> anyhow::Result<Process> {
    let mut process = Process { stdin: None, stdout: None, stderr: None, terminal: None, wait: Box::pin(std::future::pending()) };
    let (mut call, mut child);
    if streams.tty {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = std::fs::OpenOptions::new().read(true).write(true).open(ptsname(&master, Vec::new())?.to_str()?)?;
        // Whoever runs the tests may ignore SIGHUP, as nohup does; a terminal's child must not.
        call = tokio::process::Command::new("env");
        call.args(["--default-signal=HUP", "setsid", "--ctty", "--wait"]).args(command);
        child = call.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave).spawn()?;
        process.stdin = streams.stdin.then(|| master.try_clone()).transpose()?;
        process.stdout = streams.stdout.then(|| master.try_clone()).transpose()?;
        process.terminal = Some(master);
    } else {
        let pipe = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
        call = tokio::process::Command::new(&command[0]);
        call.args(&command[1..]).stdin(pipe(streams.stdin)).stdout(pipe(streams.stdout)).stderr(pipe(streams.stderr));
        child = call.spawn().with_context(|| format!("start {:?}", command[0]))?;
        process.stdin = child.stdin.take().map(|fd| fd.into_owned_fd()).transpose()?;
        process.stdout = child.stdout.take().map(|fd| fd.into_owned_fd()).transpose()?;
        process.stderr = child.stderr.take().map(|fd| fd.into_owned_fd()).transpose()?;
    }
    // Its terminal's slave is the child's alone, or the master never sees it leave.
    drop(call);
    process.wait = Box::pin(async move {
        let status = child.wait().await?;
        Ok(status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0)))
    });
    Ok(process)
}
