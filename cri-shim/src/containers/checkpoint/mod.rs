//! Checkpoints: a container's processes and writable layer in one archive, and containers made from such archives.
//!
//! The archive is a tar file, of root alone, with the names that containerd, CRI-O and checkpointctl know:
//!
//! | name | what |
//! |---|---|
//! | `config.dump` | [`ConfigDump`] |
//! | `spec.dump` | the container's config.json |
//! | `status.dump` | its ContainerStatus |
//! | `status` | its times and process, as containerd keeps them |
//! | `bind.mounts` | sources, destinations and kinds of its bind mounts |
//! | `checkpoint/` | CRIU's images |
//! | `rootfs-diff.tar` | the writable layer in the form of an image's layer, whiteouts included |
//! | `deleted.files` | what it hides of the image, once more, for readers that know no whiteouts |
//! | `container.log` | the log |
//! | `dump.log`, `stats-dump` | what CRIU says of its work |
//!
//! Of an archive that is restored nothing is trusted but what CRIU must be given: the specification is made from the
//! request, as for any container, and rrun holds what CRIU made of its images against it before it runs.

mod archive;
mod pod;
mod restore;
mod save;

use serde::{Deserialize, Serialize};

pub use pod::{checkpoint_pod, restore_pod};
pub(super) use restore::{Dump, Source, fill, fit, forget, restore_args, take, write_log};
pub use save::{checkpoint, give_up};

const CONFIG: &str = "config.dump";
const SPEC: &str = "spec.dump";
const STATUS: &str = "status.dump";
const TIMES: &str = "status";
const BIND_MOUNTS: &str = "bind.mounts";
const IMAGES: &str = "checkpoint";
const ROOTFS_DIFF: &str = "rootfs-diff.tar";
const DELETED: &str = "deleted.files";
const LOG: &str = "container.log";
/// As CRI-O calls the log.
const CRIO_LOG: &str = "io.kubernetes.cri-o.LogPath";

/// `config.dump`; times are RFC 3339.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ConfigDump {
    id: String,
    name: String,
    /// The image as it was asked for.
    rootfs_image: String,
    /// The image itself: a name with a digest, or an id.
    rootfs_image_ref: String,
    /// The image by a name with a tag, where it has one.
    rootfs_image_name: String,
    /// The runtime handler.
    runtime: String,
    created_time: String,
    checkpointed_time: String,
    restored: bool,
}
