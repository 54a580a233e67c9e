//! `rrun-cri`, the CRI v1 server. The server itself is not written yet; the
//! binary says so rather than pretend.
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("rrun-cri version {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    eprintln!("rrun-cri: this build serves no CRI requests yet; use containerd or CRI-O with rrun as their runtime");
    ExitCode::FAILURE
}
