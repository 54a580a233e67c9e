//! `rrun-monitor`: one per pod. It is its containers' parent, writes their logs, keeps their terminals, and answers
//! the daemon, which may come and go. `rrun_monitor::wire` has the protocol.
//!
//! ```text
//! rrun-monitor serve        the listening socket is descriptor 0, the working folder the pod's
//! rrun-monitor resume FD    after an upgrade: the state is in FD
//! rrun-monitor pod-init     the first process of a shared PID namespace
//! ```

mod container;
mod log;
mod oom;
mod pod_init;
mod poller;
mod process;
mod program;
mod requests;
mod runtime;
mod sandbox;
mod server;
mod sys;
mod upgrade;

use anyhow::{Context, Result, bail};
use rrun_monitor::clock;
use server::Server;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    if command.as_deref() == Some(pod_init::ARGUMENT) {
        pod_init::main();
    }
    match run(command.as_deref(), arguments.next().as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("rrun-monitor: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Option<&str>, argument: Option<&str>) -> Result<()> {
    let mut server = match (command, argument) {
        (Some("serve"), None) => {
            sys::close_from(3);
            become_parent()?;
            let listener = sys::adopt_fd(0).context("descriptor 0 is not open: it has to be the listening socket")?;
            rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC).context("fcntl")?;
            Server::new(listener)?
        }
        (Some(upgrade::ARGUMENT), Some(fd)) => upgrade::resume(fd.parse().context("resume FD")?)?,
        (Some("--version"), None) => {
            println!("rrun-monitor version {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        _ => bail!("the daemon starts this program: rrun-monitor serve | resume FD | pod-init | --version"),
    };
    server.run()
}

/// Of all that the containers leave behind; and of nobody's session, so that no terminal's end is ours.
fn become_parent() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    let _ = rustix::process::setsid();
    // The last to go when memory runs out, where we may say so.
    oom::OwnScore::open().set(-999);
    Ok(())
}
