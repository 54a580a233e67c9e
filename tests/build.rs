//! Compiles the probe a second time, static, so that it runs in a root file system that holds
//! nothing else; the harness embeds it. The probe uses std alone, so the compiler is enough.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=probe");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("probe");
    let target = env::var("TARGET").unwrap_or_default();
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--crate-name=probe", "--crate-type=bin", "--target", &target]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Ctarget-feature=+crt-static", "-Crelocation-model=static"]);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", linker.display()));
    }
    rustc.arg("-o").arg(&out).arg("probe/main.rs");
    match rustc.status() {
        Ok(status) if status.success() => println!("cargo::rustc-env=PROBE={}", out.display()),
        other => {
            eprintln!("cannot compile the static probe ({other:?}); a static C library is needed (libc6-dev)");
            exit(1);
        }
    }
}
