//! From parsed flags to the types of [`args`](super): the last checks that need no file.

use super::parse::{Parsed, go_bool, number, utf8};
use super::{
    CgroupManager, Checkpoint, Create, Criu, Delete, Events, Exec, Id, Kill, List, LogFormat, Mounts, Ps, Restore, Run, Spec, Update,
};
use crate::signals;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) fn id(p: &Parsed) -> Result<Id> {
    Ok(Id { id: operand(p, 0)? })
}

pub(super) fn create(p: &Parsed) -> Result<Create> {
    Ok(Create {
        id: operand(p, 0)?,
        bundle: p.path("bundle"),
        config: p.path("config"),
        console_socket: p.path("console-socket"),
        pidfd_socket: p.path("pidfd-socket"),
        pid_file: p.path("pid-file"),
        no_pivot: p.on("no-pivot"),
        no_new_keyring: p.on("no-new-keyring"),
        preserve_fds: p.number("preserve-fds")?.unwrap_or(0),
    })
}

pub(super) fn run(p: &Parsed) -> Result<Run> {
    let mut create = create(p)?;
    if create.bundle.is_none() && create.config.is_none() && !Path::new("config.json").exists() {
        let dir = PathBuf::from(&create.id);
        if dir.join("config.json").exists() {
            create.id = id_of(&dir)?;
            create.bundle = Some(dir);
        }
    }
    Ok(Run { create, detach: p.on("detach"), keep: p.on("keep"), no_subreaper: p.on("no-subreaper") })
}

/// A container id made from a folder's name.
fn id_of(dir: &Path) -> Result<String> {
    let whole = std::fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
    let name = whole.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    let id = |c: char| if c.is_ascii_alphanumeric() || "_+.-".contains(c) { c } else { '-' };
    match name.chars().map(id).collect::<String>() {
        id if id.is_empty() => bail!("{}: the folder has no name to make an id from (use 'run --bundle DIR ID')", dir.display()),
        id => Ok(id),
    }
}

pub(super) fn mounts(p: &Parsed) -> Result<Mounts> {
    let remove = match operand(p, 0)?.as_str() {
        "add" => false,
        "remove" => true,
        other => bail!("unknown action {other:?} (add or remove)"),
    };
    Ok(Mounts { remove, id: operand(p, 1)?, file: PathBuf::from(&p.operands[2]) })
}

pub(super) fn events(p: &Parsed) -> Result<Events> {
    let interval = match p.text("interval")? {
        None => Duration::from_secs(5),
        Some(text) => duration(&text).with_context(|| format!("invalid value {text:?} for --interval (such as 5s or 100ms)"))?,
    };
    Ok(Events { id: operand(p, 0)?, stats: p.on("stats"), interval })
}

/// A duration as Go's programs write it, `1m30.5s`; a negative one is 0.
fn duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = text.strip_prefix('-').map_or((false, text.strip_prefix('+').unwrap_or(text)), |rest| (true, rest));
    let mut nanoseconds = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() && rest != "0" {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        let unit_end = rest[unit_at..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |n| unit_at + n);
        nanoseconds += number
            * match &rest[unit_at..unit_end] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 6e10,
                "h" => 3.6e12,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    Some(Duration::from_nanos(if negative { 0 } else { nanoseconds as u64 }))
}

pub(super) fn exec(p: &Parsed) -> Result<Exec> {
    let args = (1..p.operands.len()).map(|i| operand(p, i)).collect::<Result<Vec<_>>>()?;
    let process = p.path("process");
    if process.is_none() && args.is_empty() {
        bail!("exec args cannot be empty");
    }
    Ok(Exec {
        id: operand(p, 0)?,
        args,
        process,
        console_socket: p.path("console-socket"),
        pidfd_socket: p.path("pidfd-socket"),
        cwd: p.path("cwd"),
        env: p.texts("env")?,
        tty: p.on("tty"),
        user: p.text("user")?.map(|u| user(&u)).transpose()?,
        additional_gids: p.texts("additional-gids")?.iter().map(|g| number("additional-gids", g)).collect::<Result<_>>()?,
        detach: p.on("detach"),
        pid_file: p.path("pid-file"),
        process_label: p.text("process-label")?,
        apparmor: p.text("apparmor")?,
        no_new_privs: p.switch("no-new-privs"),
        cap: p.texts("cap")?,
        preserve_fds: p.number("preserve-fds")?.unwrap_or(0),
        cgroup: p.texts("cgroup")?,
        ignore_paused: p.on("ignore-paused"),
    })
}

/// Numbers only: a name would have to be looked up in the container's own files.
fn user(text: &str) -> Result<(u32, Option<u32>)> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let number =
        |what: &str, n: &str| n.parse().with_context(|| format!("bad {what} {n:?} in --user {text} (it takes UID[:GID], by number)"));
    Ok((number("uid", uid)?, gid.map(|g| number("gid", g)).transpose()?))
}

pub(super) fn kill(p: &Parsed) -> Result<Kill> {
    let signal = match p.operands.get(1) {
        None => nix::libc::SIGTERM,
        Some(text) => {
            let text = utf8("signal", text)?;
            signals::parse(&text).with_context(|| format!("unknown signal {text:?}"))?
        }
    };
    Ok(Kill { id: operand(p, 0)?, signal, all: p.on("all") })
}

pub(super) fn delete(p: &Parsed) -> Result<Delete> {
    Ok(Delete { id: operand(p, 0)?, force: p.on("force") })
}

pub(super) fn list(p: &Parsed) -> Result<List> {
    Ok(List { json: is_json(p)?, quiet: p.on("quiet") })
}

pub(super) fn ps(p: &Parsed) -> Result<Ps> {
    let options = (1..p.operands.len()).map(|i| operand(p, i)).collect::<Result<Vec<_>>>()?;
    Ok(Ps { id: operand(p, 0)?, json: is_json(p)?, options })
}

fn is_json(p: &Parsed) -> Result<bool> {
    match p.text("format")?.as_deref() {
        None | Some("table") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => bail!("invalid format option {other:?} (table or json)"),
    }
}

pub(super) fn spec(p: &Parsed) -> Result<Spec> {
    Ok(Spec { bundle: p.path("bundle"), rootless: p.on("rootless") })
}

pub(super) fn update(p: &Parsed) -> Result<Update> {
    let mut values = Vec::new();
    for (name, value) in p.all().filter(|f| f.0 != "resources") {
        values.push((name, value?));
    }
    Ok(Update { id: operand(p, 0)?, resources: p.path("resources"), values })
}

pub(super) fn log_format(p: &Parsed) -> Result<LogFormat> {
    match p.text("log-format")?.as_deref() {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => bail!("invalid log-format: {other} (text or json)"),
    }
}

pub(super) fn cgroup_manager(p: &Parsed) -> Result<CgroupManager> {
    match p.text("cgroup-manager")?.as_deref() {
        None if p.on("systemd-cgroup") => Ok(CgroupManager::Systemd),
        None | Some("cgroupfs") => Ok(CgroupManager::Cgroupfs),
        Some("systemd") => Ok(CgroupManager::Systemd),
        Some("disabled") => Ok(CgroupManager::Disabled),
        Some(other) => bail!("invalid cgroup-manager: {other} (cgroupfs, systemd or disabled)"),
    }
}

pub(super) fn rootless(p: &Parsed) -> Result<Option<bool>> {
    match p.text("rootless")? {
        None => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("auto") => Ok(None),
        Some(text) => Ok(Some(go_bool(&text).with_context(|| format!("invalid rootless: {text} (true, false or auto)"))?)),
    }
}

fn criu(p: &Parsed) -> Result<Criu> {
    use crate::criu::CgroupMode::{Default, Full, Ignore, Soft, Strict};
    let cgroup_mode = match p.text("manage-cgroups-mode")?.as_deref() {
        None => Default,
        Some("soft") => Soft,
        Some("full") => Full,
        Some("strict") => Strict,
        Some("ignore") => Ignore,
        Some(_) => bail!("invalid manage-cgroups-mode value (soft, full, strict or ignore)"),
    };
    let mut empty_network = false;
    for kind in p.texts("empty-ns")?.iter().filter(|k| !k.is_empty()) {
        empty_network |= match kind.as_str() {
            "network" => true,
            other => bail!("namespace {other:?} is not supported (--empty-ns takes network)"),
        };
    }
    Ok(Criu {
        image_path: p.path("image-path"),
        work_path: p.path("work-path"),
        tcp_established: p.on("tcp-established"),
        link_remap: p.on("link-remap"),
        ext_unix_sk: p.on("ext-unix-sk"),
        shell_job: p.on("shell-job"),
        lazy_pages: p.on("lazy-pages"),
        file_locks: p.on("file-locks"),
        cgroup_mode,
        empty_network,
        auto_dedup: p.on("auto-dedup"),
    })
}

pub(super) fn checkpoint(p: &Parsed) -> Result<Checkpoint> {
    let page_server = p.text("page-server")?.map(|text| {
        let parsed = text.rsplit_once(':').and_then(|(address, port)| Some((address.to_owned(), port.parse().ok()?)));
        parsed
            .filter(|(address, _): &(String, u16)| !address.is_empty())
            .with_context(|| format!("use --page-server ADDRESS:PORT to specify page server, not {text:?}"))
    });
    Ok(Checkpoint {
        id: operand(p, 0)?,
        criu: criu(p)?,
        parent_path: p.path("parent-path"),
        leave_running: p.on("leave-running"),
        tcp_skip_in_flight: p.on("tcp-skip-in-flight"),
        status_fd: p.number("status-fd")?.filter(|fd| *fd != -1),
        page_server: page_server.transpose()?,
        pre_dump: p.on("pre-dump"),
    })
}

pub(super) fn restore(p: &Parsed) -> Result<Restore> {
    Ok(Restore {
        create: create(p)?,
        criu: criu(p)?,
        detach: p.on("detach"),
        no_subreaper: p.on("no-subreaper"),
        tcp_close: p.on("tcp-close"),
        lsm_profile: p.text("lsm-profile")?,
        lsm_mount_context: p.text("lsm-mount-context")?,
    })
}

fn operand(p: &Parsed, index: usize) -> Result<String> {
    utf8("argument", p.operands.get(index).map(|o| o.as_os_str()).unwrap_or_default())
}
