//! `checkpoint`: saves a container's processes with CRIU.

use crate::cli::{Checkpoint, Criu as Flags, Globals};
use crate::container::{Container, Status};
use crate::criu::{self, Criu, External, Notification, Options, Request};
use crate::namespaces::NEWNET;
use crate::{json, rootfs, sys};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Saves it; unless it is to run on, it is then removed.
pub fn run(globals: &Globals, args: &Checkpoint) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    match container.status()? {
        status @ (Status::Creating | Status::Created | Status::Stopped) => {
            bail!("Container cannot be checkpointed in {status} state")
        }
        Status::Running | Status::Paused => (),
    }
    let folders = Folders::make(&args.criu)?;
    if let Some(parent) = &args.parent_path {
        check_parent(parent, &folders.image_path)?;
    }
    let request = if args.pre_dump { Request::PreDump } else { Request::Dump };
    let mut status = args.status_fd.map(status_file).transpose()?;
    if args.pre_dump {
        criu::check_feature(1, "MemTrack")?;
    }
    if args.criu.lazy_pages {
        criu::check_feature(2, "LazyPages")?;
    }
    let mut options = options(&container, args)?;
    folders.lend(&mut options);
    if !args.pre_dump {
        outside(&container, &mut options, &folders.image_path)?;
    }
    let served = Criu::start(&[], false)?.serve(request, &options, |said| answer(said, &mut status));
    served.map_err(|failure| criu::explained(failure, &folders.log_path, options.log_file))?;
    if !args.leave_running && !args.pre_dump {
        super::delete::destroy(&container)?;
    }
    Ok(0)
}

fn answer(said: Notification, status: &mut Option<File>) -> Result<()> {
    if said.name == "status-ready"
        && let Some(mut file) = status.take()
    {
        file.write_all(&[0]).context("--status-fd")?;
    }
    Ok(())
}

/// The folders of images and logs, opened.
pub(super) struct Folders {
    pub(super) image_path: PathBuf,
    pub(super) images: OwnedFd,
    pub(super) work: Option<OwnedFd>,
    pub(super) log_path: PathBuf,
}

impl Folders {
    /// Makes them where they are not there.
    fn make(flags: &Flags) -> Result<Folders> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let path = image_path(flags);
        builder.create(&path).with_context(|| format!("--image-path: make {}", path.display()))?;
        Folders::open(flags)
    }

    /// Opens them; only that of logs is made.
    pub(super) fn open(flags: &Flags) -> Result<Folders> {
        let image_path = image_path(flags);
        let images = criu::open_folder(&image_path, "--image-path")?;
        let mut folders = Folders { log_path: image_path.clone(), image_path, images, work: None };
        if let Some(path) = &flags.work_path {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(path).with_context(|| format!("--work-path: make {}", path.display()))?;
            folders.work = Some(criu::open_folder(path, "--work-path")?);
            folders.log_path.clone_from(path);
        }
        Ok(folders)
    }

    /// Names them in a request.
    pub(super) fn lend(&self, options: &mut Options) {
        options.images = self.images.as_raw_fd();
        options.work = self.work.as_ref().map(AsRawFd::as_raw_fd);
    }
}

fn image_path(flags: &Flags) -> PathBuf {
    flags.image_path.clone().unwrap_or_else(|| PathBuf::from("checkpoint"))
}

/// CRIU makes a link of it beside the images, so it is relative to them.
fn check_parent(parent: &Path, images: &Path) -> Result<()> {
    if parent.is_absolute() {
        bail!("--parent-path {}: must be relative to the folder of --image-path", parent.display());
    }
    let there = images.join(parent);
    if !there.is_dir() {
        bail!("invalid --parent-path {}: {} is no folder", parent.display(), there.display());
    }
    Ok(())
}

fn status_file(fd: i32) -> Result<File> {
    let file = (fd > 2).then(|| sys::inherited_fd(fd)).flatten().with_context(|| format!("invalid --status-fd argument {fd}: not open"))?;
    let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL).context("fcntl(F_GETFL)")?;
    if flags & nix::libc::O_ACCMODE == nix::libc::O_RDONLY {
        bail!("invalid --status-fd argument {fd}: not writable");
    }
    sys::set_cloexec(fd, true).context("--status-fd")?;
    Ok(file.into())
}

/// What both commands ask for alike.
pub(super) fn common(flags: &Flags, annotation: Option<&str>) -> Options {
    Options {
        ext_unix_sk: flags.ext_unix_sk,
        tcp_established: flags.tcp_established,
        shell_job: flags.shell_job,
        file_locks: flags.file_locks,
        link_remap: flags.link_remap,
        auto_dedup: flags.auto_dedup,
        lazy_pages: flags.lazy_pages,
        cgroup_mode: flags.cgroup_mode,
        empty_namespaces: if flags.empty_network { NEWNET as u32 } else { 0 },
        config: criu::config_file(annotation).map(ToOwned::to_owned),
        ..Options::default()
    }
}

fn options(container: &Container, args: &Checkpoint) -> Result<Options> {
    let record = &container.record;
    let spec = container.config()?;
    let annotation = record.annotations.get("org.criu.config").map(String::as_str);
    let mut options = Options {
        pid: Some(record.pid),
        log_file: Options::log_of(Request::Dump),
        root: record.rootfs.clone(),
        leave_running: args.leave_running,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        page_server: args.page_server.clone(),
        parent: args.parent_path.clone(),
        freezer: container.cgroup()?.freezer_folder().map(Path::to_owned),
        ..common(&args.criu, annotation)
    };
    for (kind, name, key) in criu::EXTERNAL_NAMESPACES {
        if let Some(path) = super::restore::joined(&spec, kind) {
            let inode = std::fs::metadata(&path).with_context(|| path.display().to_string())?.ino();
            options.external.push(format!("{name}[{inode}]:{key}"));
        }
    }
    Ok(options)
}

/// Names what CRIU shall not save: the mounts and standard streams that are the host's.
fn outside(container: &Container, options: &mut Options, images: &Path) -> Result<()> {
    let spec = container.config()?;
    let root = rootfs::of_process(container.record.pid)?;
    let views = super::restore::bound_cgroups(container.record.namespaces, &container.cgroup()?);
    for (destination, _) in criu::externals(&spec, &container.record.bundle, &views)? {
        rootfs::check_link(root.as_fd(), &destination)?;
        // A later mount may have covered it.
        let Some((path, _)) = rootfs::resolve(root.as_fd(), &destination)? else { continue };
        options.mounts.push(external(&path, &destination)?);
    }
    for path in masked_files(&spec, &root)? {
        options.mounts.push(external(&path, Path::new("/dev/null"))?);
    }
    for device in super::restore::devices(&spec) {
        if let Some((path, false)) = rootfs::resolve(root.as_fd(), &device)? {
            options.mounts.push(external(&path, &device)?);
        }
    }
    let streams = streams(container.record.pid)?;
    options.external.extend(streams.iter().filter(|s| s.starts_with("file[")).cloned());
    let path = images.join(criu::DESCRIPTORS);
    std::fs::write(&path, json::text(&streams)).with_context(|| path.display().to_string())
}

fn external(path: &Path, key: &Path) -> Result<External> {
    rootfs::check_key(path)?;
    Ok(External { key: path.to_string_lossy().into_owned(), value: key.to_owned() })
}

fn masked_files(spec: &Spec, root: &OwnedFd) -> Result<Vec<PathBuf>> {
    let list = spec.linux().as_ref().and_then(|l| l.masked_paths().clone()).unwrap_or_default();
    let mut files = Vec::new();
    for path in list {
        if let Some((path, false)) = rootfs::resolve(root.as_fd(), Path::new(&path))? {
            files.push(path);
        }
    }
    Ok(files)
}

/// What descriptors 0 to 2 of the process are, as CRIU names what it shall get at the restore: `pipe:[N]`,
/// and `file[MOUNT:INODE]` for files on mounts that the container does not have.
fn streams(pid: i32) -> Result<Vec<String>> {
    let mountinfo = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).context("mountinfo of the container's process")?;
    let mounts: HashSet<&str> = mountinfo.lines().filter_map(|l| l.split(' ').next()).collect();
    let mut list = Vec::new();
    for fd in 0..3 {
        let path = format!("/proc/{pid}/fd/{fd}");
        let Ok(link) = std::fs::read_link(&path) else {
            list.push(String::new());
            continue;
        };
        let name = String::from_utf8_lossy(&link.into_os_string().into_vec()).into_owned();
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        let mount = info.lines().find_map(|l| l.strip_prefix("mnt_id:")).map_or("", str::trim);
        let file = std::fs::metadata(&path).ok().filter(|_| name.starts_with('/') && !mounts.contains(mount));
        // A terminal is CRIU's own subject.
        let file = file.filter(|m| !m.file_type().is_char_device() || name == "/dev/null");
        match (file, mount.parse::<u64>()) {
            (Some(meta), Ok(mount)) => list.push(format!("file[{mount:x}:{:x}]", meta.ino())),
            _ => list.push(name),
        }
    }
    Ok(list)
}
