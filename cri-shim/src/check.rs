//! `rrun-cri check`: what this host lacks, one line each, and what that costs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::config::Config;
use crate::containers::oci::Host;
use crate::runtime::program;

/// A finding.
enum Found {
    Good(String),
    Lacking(String),
    /// The daemon cannot serve so.
    Fatal(String),
}

/// Prints what is there and what is not. Fails if the daemon could not serve.
pub(crate) fn run(config: &Config) -> Result<ExitCode> {
    let mut fatal = false;
    for found in look(config)? {
        match found {
            Found::Good(text) => println!("ok       {text}"),
            Found::Lacking(text) => println!("lacking  {text}"),
            Found::Fatal(text) => {
                fatal = true;
                println!("FATAL    {text}");
            }
        }
    }
    Ok(if fatal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn look(config: &Config) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    if rustix::process::geteuid().is_root() {
        all.push(Found::Good("runs as root".into()));
    } else {
        all.push(Found::Fatal("does not run as root: namespaces, mounts and cgroups of pods need it".into()));
    }
    for (name, runtime) in &config.runtimes {
        all.push(match program(&runtime.path) {
            Some(path) => Found::Good(format!("runtime handler {name}: {}", path.display())),
            None if *name == config.default_runtime => {
                Found::Fatal(format!("runtime handler {name} (the default): no program {}", runtime.path.display()))
            }
            None => Found::Lacking(format!("runtime handler {name}: no program {}", runtime.path.display())),
        });
    }
    all.push(match program(&config.monitor) {
        Some(path) => Found::Good(format!("monitor: {}", path.display())),
        None => Found::Fatal(format!("monitor: no program {}", config.monitor.display())),
    });
    let host = Host::probe(config)?;
    all.push(Found::Good(format!("cgroups: {}, driver {:?}", if host.cgroup2 { "v2" } else { "v1" }, host.cgroup_driver)));
    all.push(network(config));
    for (path, what) in [
        ("/proc/sys/user/max_user_namespaces", "user namespaces for pods"),
        ("/proc/self/ns/time", "time namespaces"),
        ("/sys/kernel/security/apparmor", "AppArmor profiles"),
        ("/proc/pressure/cpu", "pressure (PSI) in stats"),
    ] {
        all.push(if Path::new(path).exists() { Found::Good(what.into()) } else { Found::Lacking(format!("{what}: no {path}")) });
    }
    all.push(match host.selinux {
        true => Found::Good("SELinux labels".into()),
        false => Found::Lacking("SELinux labels: it is not active, or no policy is loaded".into()),
    });
    all.push(match rustix::fs::statfs("/proc/self/ns/net") {
        Ok(_) if program(Path::new("iptables")).is_some() || program(Path::new("nft")).is_some() => {
            Found::Good("iptables or nft for host ports".into())
        }
        _ => Found::Lacking("neither iptables nor nft: host ports (portmap) will fail".into()),
    });
    all.push(match program(Path::new("criu")) {
        Some(path) => Found::Good(format!("CRIU for checkpoints: {}", path.display())),
        None => {
            Found::Lacking("CRIU: no program criu: CheckpointContainer, CheckpointPod and what is made from checkpoints will fail".into())
        }
    });
    Ok(all)
}

fn network(config: &Config) -> Found {
    let configured = std::fs::read_dir(&config.cni.conf_dir).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))
    });
    let plugins = config.cni.bin_dirs.iter().find(|folder| folder.join("bridge").exists() || folder.join("loopback").exists());
    match (configured, plugins) {
        (true, Some(folder)) => {
            Found::Good(format!("CNI: a configuration in {}, plugins in {}", config.cni.conf_dir.display(), folder.display()))
        }
        (false, _) => {
            Found::Lacking(format!("CNI: no configuration in {}: only pods of the host's network run", config.cni.conf_dir.display()))
        }
        (true, None) => Found::Lacking(format!("CNI: no standard plugins in {:?}", config.cni.bin_dirs)),
    }
}
