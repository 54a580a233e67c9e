//! The probe: a static program that runs inside a container and tells what it sees there.
//!
//! `probe report` prints one JSON object; `probe try ACTION...` does small things and prints how
//! each ended; the other commands live for a while, or end in a given way. Nothing but std.

mod actions;
mod attacks;
mod holds;
mod json;
mod lives;
mod report;
mod sys;

use std::env;
use std::process::exit;

fn main() {
    let args: Vec<String> = env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let rest: Vec<&str> = args.iter().skip(2).map(String::as_str).collect();
    let number = |at: usize, default: u64| rest.get(at).and_then(|n| n.parse().ok()).unwrap_or(default);
    match args.get(1).map(String::as_str) {
        Some("report") => println!("{}", report::report()),
        Some("args") => println!("{}", json::list(args.iter().map(json::string))),
        Some("try") => println!("{}", actions::all(&rest)),
        Some("sleep") => lives::sleep(number(0, 3600)),
        Some("exit") => exit(number(0, 0) as i32),
        Some("die") => lives::die(number(0, 9)),
        Some("trap") => lives::trap(number(0, 0) as i32),
        Some("echo") => lives::echo(),
        Some("size") => lives::print_size_on_change(),
        Some("children") => lives::children(number(0, 1)),
        Some("fill") => lives::fill(number(0, 1)),
        Some("spin") => lives::spin(number(0, 1000)),
        Some("hold") => holds::hold(rest.first().copied().unwrap_or_default(), rest.get(1).copied().unwrap_or_default()),
        Some("overwrite") => attacks::overwrite(number(0, 5)),
        Some("watch") => attacks::watch(number(0, 5)),
        Some("roots") => attacks::roots(number(0, 5), rest.get(1).copied().unwrap_or_default()),
        Some("say") => {
            println!("{}", rest.join(" "));
            eprintln!("{}", rest.join(" "));
        }
        other => {
            eprintln!("probe: no command {other:?}");
            exit(99);
        }
    }
}
