//! Tries a plan: try_rootfs BUNDLE [userns] [nocgroupns] [nopivot] [nomnt] [netns]
use rrun::{bundle::Bundle, cgroups::View, rootfs, sys};
use std::ffi::CString;
use std::path::Path;
fn main() {
    if let Err(e) = real() {
        eprintln!("ERROR: {e:#}");
        std::process::exit(1)
    }
}
fn real() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let has = |s: &str| args.iter().any(|a| a == s);
    let bundle = Bundle::load(Path::new(&args[1]), None)?;
    let linux = bundle.spec.linux().clone().unwrap();
    let views: Vec<View> = std::fs::read_to_string("/proc/self/cgroup")?
        .lines()
        .filter_map(|l| {
            let mut f = l.splitn(3, ':').skip(1);
            let (c, p) = (f.next()?.to_owned(), f.next()?.to_owned());
            let name = if c.is_empty() { "unified".to_string() } else { c.trim_start_matches("name=").to_string() };
            let mp = Path::new("/sys/fs/cgroup").join(&name);
            Some(View {
                name,
                links: vec![],
                host_dir: mp.join(p.trim_start_matches('/')),
                mountpoint: mp,
                options: c.clone(),
                v2: c.is_empty(),
            })
        })
        .collect();
    let empty = vec![];
    let userns = has("userns");
    let ctx = rootfs::Context {
        privileged: nix::unistd::geteuid().is_root(),
        user_namespace: userns,
        new_mount_namespace: !has("nomnt"),
        new_cgroup_namespace: !has("nocgroupns"),
        new_pid_namespace: true,
        new_network_namespace: has("netns"),
        cgroup_views: views,
        mount_label: None,
        no_pivot: has("nopivot"),
        id_maps: (linux.uid_mappings().as_ref().unwrap_or(&empty), linux.gid_mappings().as_ref().unwrap_or(&empty)),
    };
    let mut plan = rootfs::Plan::new(&bundle, &ctx)?;
    plan.open_sources()?;
    let mut flags = libc::CLONE_NEWPID as u64 | libc::CLONE_NEWIPC as u64;
    if !has("nomnt") {
        flags |= libc::CLONE_NEWNS as u64
    }
    if has("netns") {
        flags |= libc::CLONE_NEWNET as u64
    }
    if !has("nocgroupns") {
        flags |= libc::CLONE_NEWCGROUP as u64
    }
    if userns {
        flags |= libc::CLONE_NEWUSER as u64
    }
    let (r, w) = nix::unistd::pipe()?;
    match sys::clone(flags, None)? {
        sys::Cloned::Child => {
            drop(w);
            let _ = nix::unistd::read(&r, &mut [0u8; 1]);
            let result = (|| -> anyhow::Result<()> {
                if userns {
                    sys::setresgid(0)?;
                    sys::setresuid(0)?;
                }
                eprintln!("-- prepare");
                let _ = nix::unistd::getppid();
                let root = plan.prepare()?;
                root.pivot()?;
                root.finish()?;
                let _ = nix::unistd::getppid();
                root.procfs()?;
                root.open_ptmx()?;
                drop(root);
                let p = bundle.spec.process().as_ref().unwrap();
                let argv: Vec<CString> = p.args().as_ref().unwrap().iter().map(|a| CString::new(a.as_str()).unwrap()).collect();
                let env: Vec<CString> = p.env().as_ref().unwrap().iter().map(|a| CString::new(a.as_str()).unwrap()).collect();
                Err(sys::execve(&argv[0], &argv, &env).into())
            })();
            eprintln!("CHILD ERROR: {:#}", result.unwrap_err());
            sys::exit_now(7)
        }
        sys::Cloned::Parent(pid, _) => {
            if userns {
                let m = |l: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| {
                    l.as_ref()
                        .map(|l| l.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect::<String>())
                        .unwrap_or_default()
                };
                if !nix::unistd::geteuid().is_root() {
                    std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
                }
                std::fs::write(format!("/proc/{pid}/uid_map"), m(linux.uid_mappings()))?;
                std::fs::write(format!("/proc/{pid}/gid_map"), m(linux.gid_mappings()))?;
            }
            drop(r);
            drop(w);
            let s = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)?;
            if !matches!(s, nix::sys::wait::WaitStatus::Exited(_, 0)) {
                println!("{s:?}");
            }
        }
    }
    Ok(())
}
