//! Pseudo-terminals: the console socket's other end, and a terminal to run the runtime on.

use crate::host::wait_until;
use crate::sys;
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A socket that waits for a container's terminal.
#[derive(Debug)]
pub struct ConsoleSocket {
    /// Where it listens.
    pub path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn listen(path: &Path) -> ConsoleSocket {
        ConsoleSocket { path: path.into(), listener: UnixListener::bind(path).unwrap() }
    }

    /// Takes the terminal that the runtime sends: what it said with it, and the master side.
    pub fn receive(&self) -> (Vec<u8>, Terminal) {
        let (stream, _) = self.listener.accept().unwrap();
        let (bytes, mut fds) = sys::receive_fds(&stream);
        assert_eq!(fds.len(), 1, "descriptors sent over the console socket");
        (bytes, Terminal::new(fds.remove(0)))
    }
}

/// The master side of a pseudo-terminal; what comes out of it is collected by a thread.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn new(master: OwnedFd) -> Terminal {
        let master = File::from(master);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (master.try_clone().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut bytes = [0u8; 4096];
            // EIO is the end: no process holds the other side any more.
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                sink.lock().unwrap().extend_from_slice(&bytes[..n]);
            }
        });
        Terminal { master, seen }
    }

    /// A new pair of `rows` and `columns`: the master, and the slave for a program to run on.
    pub fn open(rows: u16, columns: u16) -> (Terminal, File) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        (Terminal::new(pair.master), File::from(pair.slave))
    }

    /// Types `text`.
    pub fn write(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).unwrap();
    }

    /// Everything that came out so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until `text` has come out.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        assert!(wait_until(20, || self.text().contains(text)), "no {text:?} in {:?}", self.text());
    }

    /// Changes its size; the foreground process group of the slave gets WINCH.
    pub fn resize(&self, rows: u16, columns: u16) {
        sys::set_window_size(&self.master, rows, columns);
    }
}

/// Whether a terminal is in raw mode (no line editing, no echo, no signals).
pub fn is_raw(terminal: &Termios) -> bool {
    !terminal.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
}

/// A terminal's settings.
pub fn settings(fd: impl AsFd) -> Termios {
    tcgetattr(fd).unwrap()
}
