//! `probe hold WHAT [PATH]`: has something open of which a checkpoint must be told what becomes of it, and uses it. Every use
//! that goes well is counted in `/count`; the first that fails makes `/ended`.

use crate::sys::{self, nr};
use std::fs::{self, File};
use std::io::{Error, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;

/// Holds it for ever.
pub(crate) fn hold(what: &str, path: &str) -> ! {
    let done = match what {
        "lock" => lock(),
        "tcp" => tcp(),
        "backlog" => backlog(),
        "unix" => unix(path),
        "removed" => removed(),
        "memory" => memory(),
        _ => Err(Error::other("no such thing")),
    };
    let _ = fs::write("/ended", format!("{done:?}"));
    loop {
        thread::park();
    }
}

/// A lock of the file `/lock`.
fn lock() -> Result<()> {
    let file = File::create("/lock")?;
    sys::call(nr::FLOCK, &[file.as_raw_fd() as usize, 2]).map_err(Error::from_raw_os_error)?;
    count(|| Ok(()))
}

/// Both ends of a connection.
fn tcp() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut one = TcpStream::connect(listener.local_addr()?)?;
    let (mut two, _) = listener.accept()?;
    drop(listener);
    count(|| one.write_all(b"x").and_then(|()| two.read_exact(&mut [0])))
}

/// A connection that nobody has accepted.
fn backlog() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let _waits = TcpStream::connect(listener.local_addr()?)?;
    count(|| listener.local_addr().map(drop))
}

/// A connection to a datagram socket.
fn unix(path: &str) -> Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    count(|| socket.send(b"x").map(drop))
}

/// A file that has another name by now.
fn removed() -> Result<()> {
    let mut file = File::create("/before")?;
    fs::hard_link("/before", "/after")?;
    fs::remove_file("/before")?;
    count(|| file.write_all(b"x"))
}

/// Eight megabytes, all of which are still what they were.
fn memory() -> Result<()> {
    let memory: Vec<u32> = (0..2 << 20).collect();
    count(|| {
        let whole = std::hint::black_box(&memory).iter().zip(0..).all(|(have, want)| *have == want);
        if whole { Ok(()) } else { Err(Error::other("other memory")) }
    })
}

/// Of one length and in one file, so that a checkpoint may be restored twice.
fn count(mut used: impl FnMut() -> Result<()>) -> Result<()> {
    let file = File::create("/count")?;
    for i in 1u64.. {
        used()?;
        file.write_all_at(format!("{i:020}").as_bytes(), 0)?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
