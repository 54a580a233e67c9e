//! The daemon: one instance per root folder, recovery before serving, a socket of 0660, a quiet end.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rrun_proto::rrun::images_server::ImagesServer;
use rrun_proto::v1::image_service_server::ImageServiceServer;
use rrun_proto::v1::runtime_service_server::RuntimeServiceServer;
use rustix::fs::{FlockOperation, flock};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use crate::cni::Network;
use crate::config::Config;
use crate::containers::Streamer;
use crate::containers::oci::{self, Host};
use crate::images::Images;
use crate::images::unpack::Options;
use crate::metrics::{self, Timed};
use crate::recovery;
use crate::runtime::Runtimes;
use crate::service::{Image, Pull, Runtime};
use crate::shim::Shim;
use crate::trace;

/// Largest message that is taken or sent; kubelet's own limit is the same.
pub const MESSAGE_MAX: usize = 16 << 20;
/// How long requests may go on after the daemon was told to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> Result<()> {
    let _lock = lock(&config)?;
    let shim = prepare(config).await?;
    recovery::recover(&shim).await?;
    crate::nri::start(&shim).await;
    let listener = listen(&shim.config).await?;
    let (urls, streams) = crate::streaming::bind(&shim.config.streaming).await?;
    shim.set_urls(urls);
    let streaming = tokio::spawn(streams.serve(Arc::new(Streamer(shim.clone()))));
    let janitor = shim.clone();
    tokio::spawn(async move { recovery::collect_garbage(&janitor).await });
    metrics::serve(&shim).await?;
    let node = rustix::system::uname();
    if let Some(exporter) = trace::Exporter::new(&shim.config.tracing, &node.nodename().to_string_lossy())? {
        trace::set(exporter);
    }
    tracing::info!(socket = %shim.config.socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    notify("READY=1");
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(Timed(
            RuntimeServiceServer::new(Runtime::new(shim.clone()))
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX),
        ))
        .add_service(Timed(
            ImageServiceServer::new(Image::new(shim.clone())).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX),
        ))
        .add_service(Timed(ImagesServer::new(Pull::new(shim.clone()))))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            let _ = ended.await;
        });
    let mut server = tokio::spawn(server);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        result = &mut server => return result?.context("serve"),
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("ending; containers and their monitors go on");
    notify("STOPPING=1");
    let _ = end.send(());
    // Streams of events never end by themselves.
    let _ = tokio::time::timeout(PATIENCE, server).await;
    trace::flush().await;
    streaming.abort();
    shim.nri.stop().await;
    fs::remove_file(&shim.config.socket).context("remove the socket")
}

/// Everything that is there before the first request.
async fn prepare(config: Config) -> Result<Shim> {
    for path in [config.root.join("pods"), config.state.join("pods"), config.state.join("runtimes")] {
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).with_context(|| format!("chmod {}", path.display()))?;
    }
    fs::create_dir_all(&config.cni.netns_dir).with_context(|| format!("make {}", config.cni.netns_dir.display()))?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?.trim().to_owned();
    let host = Host::probe(&config)?;
    if host.apparmor
        && let Err(error) = oci::load_default_profile(&config.apparmor_profile)
    {
        tracing::warn!("AppArmor: containers that ask for the default profile will fail: {error:#}");
    }
    let runtimes = Runtimes::find(&config, host.cgroup_driver).await?;
    let network = Network::load(&config.cni).await;
    let images = open_images(&config)?;
    Ok(Shim::new(config, host, boot_id, runtimes, network, images))
}

/// The image store with the limits of the settings.
pub fn open_images(config: &Config) -> Result<Images> {
    let (mut options, images) = (Options::default(), &config.images);
    let limit = |limit: &mut u64, set: u64| {
        if set != 0 {
            *limit = set
        }
    };
    limit(&mut options.limits.bytes, images.max_layer_bytes);
    limit(&mut options.limits.entries, images.max_layer_entries);
    Images::open(&config.root, options)
}

/// Two daemons on one root would undo each other's work.
fn lock(config: &Config) -> Result<fs::File> {
    fs::create_dir_all(&config.root).with_context(|| format!("make {}", config.root.display()))?;
    let path = config.root.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    // A predecessor that was killed may leave a child that has the file open until it executes its program.
    let mut attempts = 40;
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        attempts -= 1;
        if attempts == 0 {
            return Err(error).with_context(|| format!("lock {}: another rrun-cri runs on this root", path.display()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(file)
}

async fn listen(config: &Config) -> Result<UnixListener> {
    let path = &config.socket;
    let listener = bind(path).await?;
    if !config.socket_group.is_empty() {
        chown(path, None, Some(group(&config.socket_group)?)).with_context(|| format!("chown {}", path.display()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).with_context(|| format!("chmod {}", path.display()))?;
    Ok(listener)
}

/// A socket for root alone, in the place of one that nobody listens on any more.
pub(crate) async fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        bail!("socket {}: another server listens there", path.display());
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
    }
    // Nobody else may connect in the moment before the modes are set.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    listener.with_context(|| format!("listen on {}", path.display()))
}

/// A group by number or by its name in /etc/group.
fn group(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string("/etc/group").context("read /etc/group")?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let number = line.and_then(|line| line.split(':').nth(2)).and_then(|number| number.parse().ok());
    number.with_context(|| format!("socket_group {name:?}: no such group in /etc/group"))
}

/// Tells systemd (sd_notify(3)), where it asked to be told.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else { return };
    let bytes = path.as_encoded_bytes();
    let sent = match bytes.strip_prefix(b"@") {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            std::os::unix::net::SocketAddr::from_abstract_name(name).and_then(|address| socket.send_to_addr(state.as_bytes(), &address))
        }
        None => socket.send_to(state.as_bytes(), Path::new(&path)),
    };
    if let Err(error) = sent {
        tracing::warn!("NOTIFY_SOCKET: {error}");
    }
}
