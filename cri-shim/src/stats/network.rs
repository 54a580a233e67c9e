//! What went through a network namespace's interfaces.

use std::fs::{self, File};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::read::number;

/// An interface and its counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Interface {
    pub name: String,
    pub received: Counters,
    pub sent: Counters,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counters {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// All interfaces but the loopback: by way of a process in the namespace, or, where there is none, by a thread that goes
/// there.
pub(super) fn interfaces(pid: Option<i32>, namespace: &Path) -> Vec<Interface> {
    let text = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()).or_else(|| visit(namespace));
    parse(&text.unwrap_or_default())
}

/// The first is what kubelet shows as the pod's network.
pub(super) fn default(interfaces: &[Interface]) -> Option<&Interface> {
    interfaces.iter().find(|interface| interface.name == "eth0").or(interfaces.first())
}

fn visit(namespace: &Path) -> Option<String> {
    let namespace = File::open(namespace).ok()?;
    // The thread stays in the namespace and ends there: none of the pool's comes back to do other work.
    let thread = std::thread::Builder::new().name("net/dev".into()).spawn(move || {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network)).ok()?;
        fs::read_to_string("/proc/thread-self/net/dev").ok()
    });
    thread.ok()?.join().ok()?
}

/// proc_pid_net(5): two lines of titles, then `NAME: ` and 16 numbers.
fn parse(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(number).collect();
        let counters = |at: usize| {
            let [bytes, packets, errors, dropped] = *numbers.get(at..at + 4)? else { return None };
            Some(Counters { bytes, packets, errors, dropped })
        };
        Some(Interface { name: name.trim().to_owned(), received: counters(0)?, sent: counters(8)? })
    };
    text.lines().filter_map(line).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  net1:       5       1    0    0    0     0          0         0        6       1    0    0    0     0       0          0
  eth0: 1234567      11    2    3    0     0          0         0  7654321      22    4    5    0     0       0          0
";

    #[test]
    fn counters() {
        let all = parse(TEXT);
        assert_eq!(all.len(), 2);
        let eth0 = default(&all).unwrap();
        assert_eq!(eth0.received, Counters { bytes: 1_234_567, packets: 11, errors: 2, dropped: 3 });
        assert_eq!(eth0.sent, Counters { bytes: 7_654_321, packets: 22, errors: 4, dropped: 5 });
        assert!(default(&[]).is_none());
    }

    #[test]
    fn this_machine() {
        let own = interfaces(Some(std::process::id() as i32), Path::new("/nonexistent"));
        let names = |all: &[Interface]| all.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        match visit(Path::new("/proc/self/ns/net")) {
            Some(text) => assert_eq!(names(&parse(&text)), names(&own)),
            None => eprintln!("SKIP stats::network: needs the right to join a network namespace"),
        }
        assert!(interfaces(None, Path::new("/nonexistent")).is_empty());
    }
}
