//! One call of the runtime's command line, and how it ended.
//!
//! Standard output and error go to files, not pipes: a detached container keeps them open, and
//! what it writes later can be read later.

use serde_json::Value;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long any call may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A call to make.
#[derive(Debug)]
pub struct Call {
    command: Command,
    out: PathBuf,
    log: Option<PathBuf>,
    stdio: bool,
}

/// A call under way.
#[derive(Debug)]
pub struct Running {
    /// The runtime's process.
    pub child: Child,
    line: String,
    out: PathBuf,
    log: Option<PathBuf>,
}

/// A call that has ended.
#[derive(Debug)]
pub struct Done {
    /// The command line.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output so far.
    pub stdout: String,
    /// Standard error so far.
    pub stderr: String,
    /// What is in the file of `--log`, if one was named.
    pub log: String,
    out: PathBuf,
}

impl Call {
    /// A call of `command`; its output goes to `out.stdout` and `out.stderr`.
    pub fn new(mut command: Command, out: PathBuf, log: Option<PathBuf>) -> Call {
        command.stdin(Stdio::null());
        Call { command, out, log, stdio: true }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Call {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Call {
        self.command.args(args);
        self
    }

    /// A variable of the runtime's own environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Call {
        self.command.env(name, value);
        self
    }

    /// Nothing in the runtime's own environment but what callers always give.
    pub fn env_clear(mut self) -> Call {
        self.command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        self
    }

    /// The runtime's current folder.
    pub fn current_dir(mut self, dir: &Path) -> Call {
        self.command.current_dir(dir);
        self
    }

    /// What it reads from standard input.
    pub fn input(mut self, text: &str) -> Call {
        let path = self.out.with_extension("stdin");
        fs::write(&path, text).unwrap();
        self.command.stdin(File::open(path).unwrap());
        self
    }

    /// Standard input, output and error of its own instead of the files.
    pub fn stdio(mut self, set: impl FnOnce(&mut Command)) -> Call {
        set(&mut self.command);
        self.stdio = false;
        self
    }

    /// Starts it.
    pub fn spawn(mut self) -> Running {
        if self.stdio {
            self.command.stdout(File::create(self.out.with_extension("stdout")).unwrap());
            self.command.stderr(File::create(self.out.with_extension("stderr")).unwrap());
        }
        let line = format!("{:?}", self.command);
        let child = self.command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
        Running { child, line, out: self.out, log: self.log }
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Done {
        self.spawn().wait()
    }

    /// Runs it; it must succeed.
    pub fn ok(self) -> Done {
        self.run().ok()
    }

    /// Runs it; it must fail with `code` and one line on standard error that holds each of `texts`.
    pub fn fails(self, code: i32, texts: &[&str]) -> Done {
        self.run().fails(code, texts)
    }
}

impl Running {
    /// Process id of the runtime.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.out, "stdout")
    }

    /// Waits until standard output holds `text`.
    pub fn wait_for(&self, text: &str) -> &Running {
        assert!(crate::host::wait_until(30, || self.stdout().contains(text)), "{}: no {text:?} in {:?}", self.line, self.stdout());
        self
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; one that does not end is killed and fails the test.
    pub fn wait(mut self) -> Done {
        let deadline = Instant::now() + LIMIT;
        let mut pause = Duration::from_micros(200);
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let status = status.unwrap_or_else(|| {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!("{}: not done after {LIMIT:?}; stderr: {}", self.line, read(&self.out, "stderr"))
        });
        let log = self.log.map(|p| fs::read_to_string(p).unwrap_or_default()).unwrap_or_default();
        let (stdout, stderr) = (read(&self.out, "stdout"), read(&self.out, "stderr"));
        Done { line: self.line, status, stdout, stderr, log, out: self.out }
    }
}

fn read(out: &Path, stream: &str) -> String {
    fs::read(out.with_extension(stream)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

impl Done {
    /// The exit code; 128 + n for a runtime that died of a signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Done {
        self.exits(0)
    }

    /// It must have ended with `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Done {
        assert!(self.code() == code, "expected exit code {code}\n{self}");
        self
    }

    /// It must have failed with `code`, saying each of `texts` (any letter case) on one line of
    /// standard error.
    #[track_caller]
    pub fn fails(self, code: i32, texts: &[&str]) -> Done {
        assert!(self.code() == code, "expected exit code {code}\n{self}");
        // A text log line has its message in quotes.
        let plain = |line: &str| line.replace("\\\"", "\"").to_lowercase();
        let fits = |line: &str| texts.iter().all(|t| plain(line).contains(&t.to_lowercase()));
        assert!(self.stderr.lines().any(fits), "expected one line of standard error with {texts:?}\n{self}");
        self
    }

    /// Standard error must be one line, warnings apart: what failed, why, and what to do.
    #[track_caller]
    pub fn one_line(self) -> Done {
        let lines = self.stderr.lines().filter(|l| !l.contains("level=warning")).count();
        assert!(lines == 1, "expected one line of standard error\n{self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("standard output is no JSON: {e}\n{self}"))
    }

    /// What a detached container has written to standard output by now.
    pub fn output_now(&self) -> String {
        read(&self.out, "stdout")
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command: {}\nended:   {}\nstdout:  {}\nstderr:  {}", self.line, self.status, self.stdout, self.stderr)?;
        if self.log.is_empty() { Ok(()) } else { write!(f, "\nlog:     {}", self.log) }
    }
}
