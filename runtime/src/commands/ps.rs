//! `ps`.

use crate::cli::{Globals, Ps};
use crate::commands::output;
use crate::container::Container;
use crate::json;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Prints the container's process ids as JSON, or the host's `ps` reduced to them.
pub fn run(globals: &Globals, args: &Ps) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    let pids = container.cgroup()?.pids()?;
    if pids.is_empty() && container.alive() {
        bail!("container {} has no cgroup in which its processes could be found", args.id);
    }
    if args.json {
        output::print(&(json::text(&(!pids.is_empty()).then_some(&pids)) + "\n"))?;
        return Ok(0);
    }
    let mut command = Command::new("ps");
    if args.options.is_empty() {
        command.arg("-ef");
    } else {
        command.args(&args.options);
    }
    let ps = command.output().context("ps: cannot run the host's ps (install procps, or use --format json)")?;
    let text = String::from_utf8_lossy(&ps.stdout);
    if !ps.status.success() {
        bail!("ps: {}: {}", ps.status, String::from_utf8_lossy(&ps.stderr).trim().replace('\n', " "));
    }
    output::print(&rows(&text, &pids)?)?;
    Ok(0)
}

/// The head of a `ps` table and the rows of some processes.
fn rows(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    let Some(column) = head.split_whitespace().position(|name| name == "PID") else {
        bail!("couldn't find PID field in ps output {head:?} (its options must leave the head line and the PID column)");
    };
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok(std::iter::once(head).chain(lines.filter(ours)).flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::rows;

    #[test]
    fn rows_of_the_container() {
        let table = "UID   PID  PPID CMD\nroot    1     0 init 7\nroot    7     1 sh\n";
        assert_eq!(rows(table, &[7, 9]).unwrap(), "UID   PID  PPID CMD\nroot    7     1 sh\n");
        assert!(rows("root 1 0 init\n", &[1]).is_err());
    }
}
