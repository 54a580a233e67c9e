//! Names the program's entry point on x86_64: src/sys/entry.rs says why.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RRUN_COMMIT");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo:rustc-link-arg-bin=rrun=-Wl,--entry=rrun_entry,--undefined=rrun_entry");
    }
}
