//! `process`: what runs, as whom, with which environment and rights.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxCapabilities, LinuxCapabilitiesBuilder, Process, ProcessBuilder, UserBuilder};
use rrun_proto::v1;

use super::{Found, ImageConfig, Input, capabilities, invalid};
use crate::error::Result;

/// The first variables of every environment.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(input: &Input<'_>, found: &Found) -> Result<Process> {
    let security = input.security();
    let user = UserBuilder::default().uid(found.user.uid).gid(found.user.gid).additional_gids(groups(found)).build();
    let mut process = ProcessBuilder::default()
        .terminal(input.config.tty)
        .user(user.map_err(anyhow::Error::from)?)
        .args(args(input.config, input.image)?)
        .env(env(input, &found.cdi.env)?)
        .cwd(cwd(input)?)
        .capabilities(capability_sets(input)?)
        .no_new_privileges(security.no_new_privs)
        .build()
        .map_err(anyhow::Error::from)?;
    process.set_rlimits(None).set_oom_score_adj(oom_score_adj(input)?);
    process.set_apparmor_profile(found.apparmor.clone()).set_selinux_label(super::label(&input.selinux.process));
    Ok(process)
}

/// The user's groups and those that CDI devices bring.
fn groups(found: &Found) -> Vec<u32> {
    let mut groups = found.user.groups.clone();
    for gid in &found.cdi.additional_gids {
        if *gid != 0 && !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    groups
}

/// A command replaces the image's entrypoint and its arguments, arguments alone only the latter.
fn args(config: &v1::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    match all.first() {
        None => Err(invalid("command: empty, and the image names no program either: say what to run")),
        Some(program) if program.is_empty() => Err(invalid("command: the program's name is empty")),
        Some(_) => match all.iter().find(|arg| arg.contains('\0')) {
            Some(arg) => Err(invalid(format!("command: {arg:?} holds a NUL"))),
            None => Ok(all),
        },
    }
}

/// Our own variables, then the image's, then the container's, then those of CDI devices; of two with one name the later
/// counts, in the place of the first.
fn env(input: &Input<'_>, cdi: &[String]) -> Result<Vec<String>> {
    let mut all = vec![PATH.to_owned()];
    if input.config.tty {
        all.push("TERM=xterm".to_owned());
    }
    if !input.pod.hostname.is_empty() {
        all.push(format!("HOSTNAME={}", input.pod.hostname));
    }
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned() + "=";
        match all.iter_mut().find(|old| old.starts_with(&name)) {
            Some(old) => *old = entry,
            None => all.push(entry),
        }
    };
    for entry in &input.image.env {
        // An image that was built carelessly still has to run: what is no variable is left out.
        if entry.find('=').is_some_and(|at| at > 0) && !entry.contains('\0') {
            set(entry.clone());
        }
    }
    for (index, variable) in input.config.envs.iter().enumerate() {
        let key = &variable.key;
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(invalid(format!("envs[{index}].key: {key:?} is not a variable's name")));
        }
        match std::str::from_utf8(&variable.value) {
            Ok(value) if !value.contains('\0') => set(format!("{key}={value}")),
            _ => return Err(invalid(format!("envs[{index}].value: the value of {key} is not UTF-8 text without NUL"))),
        }
    }
    cdi.iter().cloned().for_each(set);
    Ok(all)
}

fn cwd(input: &Input<'_>) -> Result<PathBuf> {
    if !input.config.working_dir.is_empty() {
        let path = PathBuf::from(&input.config.working_dir);
        return match path.is_absolute() {
            true => Ok(path),
            false => Err(invalid(format!("working_dir: {path:?} is not an absolute path"))),
        };
    }
    Ok(PathBuf::from("/").join(&input.image.working_dir))
}

/// As asked for. Where the daemon may not lower it, no lower than its own.
fn oom_score_adj(input: &Input<'_>) -> Result<Option<i32>> {
    let Some(resources) = input.resources() else { return Ok(None) };
    match i32::try_from(resources.oom_score_adj) {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(Some(score.max(input.host.least_oom_score_adj.unwrap_or(score)))),
        _ => Err(invalid(format!("linux.resources.oom_score_adj: {} is not from -1000 to 1000", resources.oom_score_adj))),
    }
}

/// Inheritable capabilities are those asked for as ambient: any others would come back with a program that has file
/// capabilities.
fn capability_sets(input: &Input<'_>) -> Result<LinuxCapabilities> {
    let (granted, ambient) = capabilities::granted(input.security(), &input.host.capabilities)?;
    LinuxCapabilitiesBuilder::default()
        .bounding(granted.clone())
        .effective(granted.clone())
        .permitted(granted)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .map_err(|error| anyhow::Error::from(error).into())
}

/// The signal that ends a container: the request's, else the image's, else SIGTERM.
///
/// # Errors
/// `InvalidArgument` for a signal that does not exist.
pub fn stop_signal(config: &v1::ContainerConfig, image: &ImageConfig) -> Result<i32> {
    let asked = v1::Signal::try_from(config.stop_signal)
        .map_err(|_| invalid(format!("stop_signal: {} is no signal that the interface has a number for", config.stop_signal)))?;
    if asked != v1::Signal::RuntimeDefault {
        return number(asked.as_str_name().trim_start_matches("SIGNAL_"))
            .ok_or_else(|| invalid(format!("stop_signal: {} is unknown", asked.as_str_name())));
    }
    match image.stop_signal.as_str() {
        "" => Ok(15),
        name => number(name).ok_or_else(|| invalid(format!("the image's StopSignal: {name:?} is no signal"))),
    }
}

/// CRI's name of the signal that [`stop_signal`] answers, for ContainerStatus.
pub fn stop_signal_name(number: i32) -> v1::Signal {
    let name = match number {
        34 => Some("SIGRTMIN".to_owned()),
        35..=49 => Some(format!("SIGRTMINPLUS{}", number - 34)),
        50..=63 => Some(format!("SIGRTMAXMINUS{}", 64 - number)),
        64 => Some("SIGRTMAX".to_owned()),
        _ => SIGNALS.iter().find(|(_, n)| *n == number).map(|(name, _)| format!("SIG{name}")),
    };
    name.and_then(|name| v1::Signal::from_str_name(&format!("SIGNAL_{name}"))).unwrap_or(v1::Signal::RuntimeDefault)
}

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `SIGRTMINPLUS3`.
fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, word: &str, sign: &str| match rest {
        "" => Some(0),
        _ => rest.strip_prefix(word).or(rest.strip_prefix(sign))?.parse().ok().filter(|n| (0..=30).contains(n)),
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => Some(34 + offset(rest, "PLUS", "+")?),
        (_, Some(rest)) => Some(64 - offset(rest, "MINUS", "-")?),
        _ => SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number),
    }
}

/// signal(7), the numbers of x86, ARM, RISC-V, POWER and s390. The first name of a number is the one shown.
#[rustfmt::skip]
const SIGNALS: [(&str, i32); 35] = [
    ("HUP", 1), ("INT", 2), ("QUIT", 3), ("ILL", 4), ("TRAP", 5), ("ABRT", 6), ("IOT", 6), ("BUS", 7), ("FPE", 8), ("KILL", 9),
    ("USR1", 10), ("SEGV", 11), ("USR2", 12), ("PIPE", 13), ("ALRM", 14), ("TERM", 15), ("STKFLT", 16), ("CHLD", 17),
    ("CLD", 17), ("CONT", 18), ("STOP", 19), ("TSTP", 20), ("TTIN", 21), ("TTOU", 22), ("URG", 23), ("XCPU", 24), ("XFSZ", 25),
    ("VTALRM", 26), ("PROF", 27), ("WINCH", 28), ("IO", 29), ("POLL", 29), ("PWR", 30), ("SYS", 31), ("UNUSED", 31),
];
