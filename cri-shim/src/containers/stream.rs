//! Exec, Attach and PortForward: the URLs, and what the streaming server is handed when a client comes to one.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rrun_proto::v1;
use tokio::io::Interest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::process_file;
use crate::error;
use crate::monitor::{Attachment, Exec, Output};
use crate::shim::Shim;
use crate::streaming::{self, Backend, Process, Streams, dial};

/// The URL of an exec.
pub fn exec_url(shim: &Shim, request: v1::ExecRequest) -> error::Result<String> {
    let container = shim.container(&request.container_id)?;
    container.running("Exec")?;
    let streams = Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
    shim.urls()?.exec(streaming::Exec { container: container.id.clone(), command: request.cmd, streams })
}

/// The URL of an attach.
pub fn attach_url(shim: &Shim, request: v1::AttachRequest) -> error::Result<String> {
    let container = shim.container(&request.container_id)?;
    container.running("Attach")?;
    let streams = Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
    shim.urls()?.attach(streaming::Attach { container: container.id.clone(), streams })
}

/// The URL of a port-forward.
pub fn port_forward_url(shim: &Shim, request: v1::PortForwardRequest) -> error::Result<String> {
    let pod = shim.pod(&request.pod_sandbox_id)?;
    if !pod.record().ready {
        return Err(error::Error::FailedPrecondition(format!("PortForward: pod sandbox {} is not ready", pod.id)));
    }
    let port = |port: &i32| {
        let wrong = || error::Error::InvalidArgument(format!("port {port} is not between 1 and 65535"));
        u16::try_from(*port).ok().filter(|port| *port != 0).ok_or_else(wrong)
    };
    let ports = request.port.iter().map(port).collect::<error::Result<_>>()?;
    shim.urls()?.port_forward(streaming::PortForward { pod: pod.id.clone(), ports })
}

/// What the streaming server asks for processes.
pub struct Streamer(pub Shim);

impl Backend for Streamer {
    async fn exec(&self, request: streaming::Exec) -> Result<Process> {
        let container = self.0.container(&request.container)?;
        container.running("exec")?;
        let Streams { stdin, stdout, stderr, tty } = request.streams;
        let file = process_file(&container, request.command, tty).await?;
        let id = container.id.clone();
        let exec = Exec { id, process: file.path(), tty, stdin, stdout, stderr, ..Exec::default() };
        let started = self.0.pod(&container.pod)?.monitor()?.exec(&exec).await.map_err(error::Error::from)?;
        drop(file);
        let exited = started.exited;
        let wait = Box::pin(async move { Ok(exited.await.map_err(|_| anyhow!("the pod's monitor is gone"))?.code as i32) });
        let Some(pty) = started.pty else {
            let (stdin, stdout, stderr) = (started.stdin, started.stdout, started.stderr);
            return Ok(Process { stdin, stdout, stderr, terminal: None, wait });
        };
        let copy = |wanted: bool| wanted.then(|| pty.try_clone()).transpose().context("dup a terminal");
        Ok(Process { stdin: copy(stdin)?, stdout: copy(stdout)?, stderr: None, terminal: Some(pty), wait })
    }

    async fn attach(&self, request: streaming::Attach) -> Result<Process> {
        let container = self.0.container(&request.container)?;
        container.running("attach")?;
        let config = container.record().config.clone();
        let Streams { stdin, stdout, stderr, .. } = request.streams;
        let (stdin, stderr) = (stdin && config.stdin, stderr && !config.tty);
        let monitor = self.0.pod(&container.pod)?.monitor()?;
        let session = monitor.attach(&container.id, stdin, stdout, stderr).await.map_err(error::Error::from)?;
        let terminal = match container.handles().pty.filter(|_| config.tty) {
            Some(pty) => Some(pty.as_fd().try_clone_to_owned().context("dup a terminal")?),
            None => None,
        };
        let (input, stdin) = sink(stdin)?;
        let (output, stdout) = source(stdout)?;
        let (errors, stderr) = source(stderr)?;
        let wait = Box::pin(relay(session, input, output, errors));
        Ok(Process { stdin, stdout, stderr, terminal, wait })
    }

    async fn port_forward(&self, pod: &str, port: u16) -> Result<OwnedFd> {
        let pod = self.0.pod(pod)?;
        let record = pod.record();
        dial::localhost(record.netns.as_deref(), port).await
    }
}

/// A pipe that the client's input goes into: our end to read from, and the client's.
fn sink(wanted: bool) -> Result<(Option<pipe::Receiver>, Option<OwnedFd>)> {
    if !wanted {
        return Ok((None, None));
    }
    let (sender, receiver) = pipe::pipe().context("make a pipe")?;
    Ok((Some(receiver), Some(sender.into_nonblocking_fd().context("pipe")?)))
}

/// A pipe that output comes from.
fn source(wanted: bool) -> Result<(Option<pipe::Sender>, Option<OwnedFd>)> {
    if !wanted {
        return Ok((None, None));
    }
    let (sender, receiver) = pipe::pipe().context("make a pipe")?;
    Ok((Some(sender), Some(receiver.into_nonblocking_fd().context("pipe")?)))
}

/// Carries an attachment's bytes until the container ends or the client goes.
async fn relay(
    mut session: Attachment,
    input: Option<pipe::Receiver>,
    mut output: Option<pipe::Sender>,
    mut errors: Option<pipe::Sender>,
) -> Result<i32> {
    let mut feeding = std::pin::pin!(feed(input, session.stdin.take()));
    let (mut fed, mut buffer) = (false, vec![0; 64 << 10]);
    loop {
        let piece = tokio::select! {
            piece = session.next(&mut buffer) => piece.context("attachment")?,
            result = &mut feeding, if !fed => {
                result?;
                fed = true;
                session.end_input().context("end the container's input")?;
                continue;
            }
        };
        let (to, bytes) = match piece {
            Output::Stdout(bytes) => (&mut output, bytes),
            Output::Stderr(bytes) => (&mut errors, bytes),
            Output::Lost(bytes) => {
                tracing::debug!(bytes, "an attached client was too slow and lost output");
                continue;
            }
            Output::End => return Ok(0),
        };
        if let Some(pipe) = to
            && pipe.write_all(bytes).await.is_err()
        {
            *to = None; // the client wants no more of this one
        }
    }
}

/// The client's input to the container; ends when the client's does. Without an input it never ends.
async fn feed(input: Option<pipe::Receiver>, stdin: Option<OwnedFd>) -> Result<()> {
    let (Some(mut from), Some(to)) = (input, stdin) else { return std::future::pending().await };
    let to = crate::monitor::watch(to).context("attach: stdin")?;
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match to.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)).await {
                Ok(written) => rest = &rest[written..],
                Err(_) => return Ok(()), // the container's end of it is gone
            }
        }
    }
    Ok(())
}
