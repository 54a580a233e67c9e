//! What can go wrong with a pod's network: `Unavailable` without a configuration, `InvalidArgument` for a pod's own
//! mistakes, `Internal` for all else; a plugin's failure is a [`PluginError`] inside.

use std::fmt;

use crate::error::Error;

/// Why the network is not ready: a condition of the CRI's Status call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// One word, [`NotReady::REASON`]: kubelet and its users know it.
    pub reason: &'static str,
    /// One line for people.
    pub message: String,
}

impl NotReady {
    /// The reason that kubelet and tools know.
    pub const REASON: &str = "NetworkPluginNotReady";

    pub(super) fn new(message: impl Into<String>) -> NotReady {
        NotReady { reason: Self::REASON, message: message.into() }
    }
}

impl From<NotReady> for Error {
    fn from(n: NotReady) -> Error {
        Error::Unavailable(n.message)
    }
}

impl From<PluginError> for Error {
    fn from(e: PluginError) -> Error {
        Error::Internal(e.into())
    }
}

/// A failed run of one plugin, with everything needed to find the culprit.
#[derive(Debug)]
pub struct PluginError {
    /// The configuration's `type`.
    pub plugin: String,
    /// The network's name.
    pub network: String,
    /// ADD, DEL, CHECK, STATUS or GC.
    pub command: &'static str,
    /// What happened.
    pub failure: Failure,
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI plugin {:?} of network {:?}: {}: {}", self.plugin, self.network, self.command, self.failure)
    }
}

impl std::error::Error for PluginError {}

/// What happened to a plugin.
#[derive(Debug)]
pub enum Failure {
    /// No such program in the plugin folders.
    Missing {
        /// The folders, joined by ", ".
        searched: String,
    },
    /// It could not be started.
    Spawn(std::io::Error),
    /// It ran longer than the limit and was killed.
    Timeout {
        /// The limit in seconds.
        seconds: u64,
        /// What it had written to its error stream.
        stderr: String,
    },
    /// It answered with an error object.
    Reported {
        /// The specification's code (50 and 51: not available).
        code: u64,
        /// Text of the plugin.
        msg: String,
        /// More text of the plugin, may be empty.
        details: String,
    },
    /// It failed without an error object.
    Crashed {
        /// "exit status: 1" or "signal: 11 (SIGSEGV)".
        status: String,
        /// What it wrote, error stream first.
        output: String,
    },
    /// It succeeded but its answer is no CNI result.
    Garbage {
        /// What is wrong with it.
        problem: String,
        /// What it wrote, shortened.
        output: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Missing { searched } => write!(f, "no such program in {searched}"),
            Failure::Spawn(e) => write!(f, "cannot be started: {e}"),
            Failure::Timeout { seconds, stderr } => {
                write!(f, "killed after {seconds} s (cni.timeout_seconds){}", output_of(stderr))
            }
            Failure::Reported { code, msg, details } if details.is_empty() => write!(f, "{} (code {code})", one_line(msg)),
            Failure::Reported { code, msg, details } => write!(f, "{}; {} (code {code})", one_line(msg), one_line(details)),
            Failure::Crashed { status, output } => write!(f, "{status}{}", output_of(output)),
            Failure::Garbage { problem, output } => write!(f, "answered no CNI result: {problem}{}", output_of(output)),
        }
    }
}

fn output_of(text: &str) -> String {
    if text.is_empty() { ", no output".into() } else { format!(", output: {text:?}") }
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}
