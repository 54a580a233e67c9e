//! Names the program's entry point on x86_64 (src/sys/entry.rs says why) and, for a release, lays the code that commands
//! execute together: hot.ld, which bench/hot writes.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RRUN_COMMIT");
    println!("cargo:rerun-if-changed=hot.ld");
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bin=rrun=-Wl,-T,{folder}/hot.ld");
    }
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo:rustc-link-arg-bin=rrun=-Wl,--entry=rrun_entry,--undefined=rrun_entry");
    }
}
