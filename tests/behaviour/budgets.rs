//! What each command may cost in system calls, minor faults and programs: figures that do not depend on the
//! machine's load. A command that comes to need more fails here; whoever means it raises the budget in the
//! same change, and says why. Fewer system calls than a budget by more than ten are an invitation to lower it.

use std::fs;
use std::path::Path;
use tests::runtime::{Kind, program};
use tests::{Bundle, Runtime, host, require};

/// The most that a command may cost: system calls of the runtime's own processes, minor faults of them (a dozen
/// more than the least seen: they vary by how the program's file lies in the page cache), programs executed (the container's is one).
struct Budget {
    command: &'static str,
    calls: u64,
    faults: u64,
    programs: u64,
}

const fn budget(command: &'static str, calls: u64, faults: u64, programs: u64) -> Budget {
    Budget { command, calls, faults, programs }
}

/// Nine v1 hierarchies with a controller or a name, and the unified one beside them.
const V1: [Budget; 7] = [
    budget("run", 408, 118, 3),
    budget("create", 387, 110, 2),
    budget("start", 36, 46, 1),
    budget("state", 27, 45, 1),
    budget("exec", 171, 106, 3),
    budget("kill", 31, 46, 1),
    budget("delete", 42, 45, 1),
];

/// The unified hierarchy alone, driven by its files.
const V2: [Budget; 7] = [
    budget("run", 312, 112, 3),
    budget("create", 301, 106, 2),
    budget("start", 36, 46, 1),
    budget("state", 27, 42, 1),
    budget("exec", 158, 104, 3),
    budget("kill", 31, 45, 1),
    budget("delete", 28, 46, 1),
];

#[derive(Clone, Debug)]
struct Cost {
    calls: u64,
    faults: u64,
    programs: u64,
    names: String,
}

#[test]
fn no_command_costs_more_than_its_budget() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "budgets are rrun's");
    require!(host::is_root(), "only root may trace what runs as another user");
    let elf = fs::read(&program().0).unwrap();
    require!(!elf.windows(8).any(|w| w == b"/ld-linu"), "budgets are those of the static release build");
    let v2 = host::cgroup_version() == 2;
    let hierarchies = fs::read_to_string("/proc/self/cgroup").unwrap().lines().count();
    require!(v2 || hierarchies == 10, "the budgets of v1 are for ten hierarchies, here are {hierarchies}");
    let seen = least(&costs(&rt), &costs(&rt), &costs(&rt));
    let mut over = Vec::new();
    for (budget, cost) in (if v2 { &V2 } else { &V1 }).iter().zip(&seen) {
        let command = budget.command;
        eprintln!("{command}: {} system calls, {} faults, {} programs", cost.calls, cost.faults, cost.programs);
        let pairs = [
            ("system calls", cost.calls, budget.calls),
            ("faults", cost.faults, budget.faults),
            ("programs", cost.programs, budget.programs),
        ];
        for (what, is, most) in pairs {
            if is > most {
                let names = if what == "system calls" { &cost.names } else { "" };
                over.push(format!("{command}: {is} {what}, budget {most} {names}"));
            }
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// The costs of one life, in the order of the budgets.
fn costs(rt: &Runtime) -> Vec<Cost> {
    let once = rt.container(bundle(rt, &["/probe", "exit"]));
    let stays = rt.container(bundle(rt, &["/probe", "sleep"]));
    let dir = |c: &tests::Container<'_>| c.bundle.dir.display().to_string();
    let id = stays.id.as_str();
    let mut costs = vec![
        cost(rt, &["run", "--bundle", &dir(&once), &once.id]),
        cost(rt, &["create", "--bundle", &dir(&stays), id]),
        cost(rt, &["start", id]),
        cost(rt, &["state", id]),
        cost(rt, &["exec", id, "/probe", "exit"]),
        cost(rt, &["kill", id, "KILL"]),
    ];
    stays.wait_status("stopped");
    costs.push(cost(rt, &["delete", id]));
    costs
}

/// A bundle with all that an ordinary container has: the harness's own, and the mounts of cgroups.
fn bundle(rt: &Runtime, args: &[&str]) -> Bundle {
    rt.bundle().args(args.iter().copied()).mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"])
}

/// Runs one command under the counter.
fn cost(rt: &Runtime, args: &[&str]) -> Cost {
    let file = rt.dir().join("counts.json");
    let (counter, program) = (env!("CARGO_BIN_EXE_count-calls"), program().0.display().to_string());
    let (root, out) = (rt.root().display().to_string(), file.display().to_string());
    let head = [counter, &out, &program, "--root", &root];
    rt.shell("exec \"$@\"", &[&head, args].concat()).ok();
    read(&file)
}

fn read(file: &Path) -> Cost {
    let json: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let number = |name: &str| json[name].as_u64().unwrap();
    Cost { calls: number("syscalls"), faults: number("faults"), programs: number("execs"), names: json["names"].to_string() }
}

/// The least of three lives: a wait that was interrupted, a retry on a busy cgroup are not the command's.
fn least(a: &[Cost], b: &[Cost], c: &[Cost]) -> Vec<Cost> {
    let of = |i: usize| [&a[i], &b[i], &c[i]];
    (0..a.len())
        .map(|i| Cost {
            faults: of(i).map(|c| c.faults).into_iter().min().unwrap(),
            ..of(i).into_iter().min_by_key(|c| c.calls).unwrap().clone()
        })
        .collect()
}
