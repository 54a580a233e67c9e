//! `events`: what a container uses, again and again, and when the kernel kills in it for want of memory.

use crate::cgroups::{OomWatch, Seen, Stats};
use crate::cli::{Events, Globals};
use crate::commands::output;
use crate::container::{Container, Status};
use crate::intel_rdt::Groups;
use crate::json::{self, written};
use anyhow::{Result, bail};
use std::time::Instant;

/// Prints a line of JSON for each event, until the container is gone; with `--stats` just one.
pub fn run(globals: &Globals, args: &Events) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    if args.interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    if matches!(container.status()?, Status::Stopped | Status::Creating) {
        bail!("container with id {} is not running", args.id);
    }
    let cgroup = container.cgroup()?;
    let stats = || {
        let mut stats = cgroup.stats();
        stats.intel_rdt = container.record.intel_rdt.as_ref().map(Groups::stats).unwrap_or_default();
        stats
    };
    let print = |kind: &str, data: Option<Stats>| output::print(&(json::text(&Event { kind, id: &args.id, data }) + "\n"));
    if args.stats {
        return print("stats", Some(stats())).map(|()| 0);
    }
    let mut watch = OomWatch::new(&cgroup)?;
    let mut due = Instant::now() + args.interval;
    loop {
        let now = Instant::now();
        if now >= due {
            print("stats", Some(stats()))?;
            due = now + args.interval;
            continue;
        }
        match watch.wait(due - now)? {
            Seen::Nothing => (),
            Seen::Oom => print("oom", None)?,
            Seen::End => return Ok(0),
        }
    }
}

struct Event<'a> {
    kind: &'a str,
    id: &'a str,
    data: Option<Stats>,
}

written! { Event<'a>;
    "type" => kind,
    "id" => id,
    "data" => data,
}
