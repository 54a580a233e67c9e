//! The program; `rrun_cri::cli` reads its command line.
use std::process::ExitCode;

fn main() -> ExitCode {
    match rrun_cri::cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rrun-cri: {error:#}");
            ExitCode::FAILURE
        }
    }
}
