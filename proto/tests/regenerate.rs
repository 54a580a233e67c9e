//! Generated code is what the `.proto` files give. `REGENERATE=1 cargo test -p rrun-proto` writes it anew.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// The files that are compiled, relative to the package, and the Rust file that each becomes.
const FILES: &[(&str, &str)] = &[
    ("nri/v1alpha1/api.proto", "nri.pkg.api.v1alpha1.rs"),
    ("opentelemetry/trace.proto", "opentelemetry.proto.collector.trace.v1.rs"),
    ("rrun/v1/images.proto", "rrun.v1.rs"),
    ("runtime/v1/api.proto", "runtime.v1.rs"),
    ("ttrpc/v1/ttrpc.proto", "ttrpc.v1.rs"),
];

#[test]
fn generated_code_is_up_to_date() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gen");
    fs::create_dir_all(&out).unwrap();
    let files = protox::compile(FILES.iter().map(|(proto, _)| package.join(proto)), [package]).unwrap();
    tonic_prost_build::configure()
        .out_dir(&out)
        .btree_map(".")
        .skip_debug(["rrun.v1.PullRequest", "runtime.v1.AuthConfig"])
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]")
        .compile_fds(files)
        .unwrap();
    for (_, name) in FILES {
        let (made, kept) = (out.join(name), package.join("src/gen").join(name));
        let made = fs::read_to_string(made).unwrap();
        if std::env::var_os("REGENERATE").is_some() {
            fs::write(&kept, made).unwrap();
        } else {
            let kept = fs::read_to_string(&kept).unwrap_or_default();
            assert!(made == kept, "src/gen/{name} is not what its .proto gives: run REGENERATE=1 cargo test -p rrun-proto");
        }
    }
}
