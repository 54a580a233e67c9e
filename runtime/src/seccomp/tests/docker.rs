//! The profile that Docker gives a container with its default capabilities on x86_64, as of 2025.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompOperator as Operator};
use serde_json::{Value, json};

/// The calls that are allowed whatever their arguments are.
const NAMES: &str = include_str!("docker-names.txt");

#[allow(clippy::expect_used)]
pub(crate) fn profile() -> LinuxSeccomp {
    let names: Vec<&str> = NAMES.split_whitespace().collect();
    let mut calls = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    calls.extend([
        on_first("socket", Operator::ScmpCmpLt, 38, 0),
        on_first("socket", Operator::ScmpCmpEq, 39, 0),
        on_first("socket", Operator::ScmpCmpGt, 40, 0),
        // The CLONE_NEW* flags.
        on_first("clone", Operator::ScmpCmpMaskedEq, 0x7e02_0000, 0),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
    ]);
    calls.extend([0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff].map(|persona| on_first("personality", Operator::ScmpCmpEq, persona, 0)));
    serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": calls,
    }))
    .expect("a profile")
}

fn on_first(name: &str, op: Operator, value: u64, value_two: u64) -> Value {
    let args = [json!({"index": 0, "value": value, "valueTwo": value_two, "op": op})];
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
}
