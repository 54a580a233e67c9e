//! The configuration's common part: root, mounts, process and hooks.

use super::fields::{blank, built, choice, foreign, object};
use crate::json::read::{Elements, Error, Fields, Read, Reader, Result};
use crate::json::{Write, Writer};
use oci_spec::runtime::*;
use std::str::FromStr;

foreign! { Solaris Windows VM ZOS }

object! { Spec = blank()?;
    "ociVersion" => set_version,
    "root" => set_root,
    "mounts" => set_mounts,
    "process" => set_process,
    "hostname" => set_hostname,
    "domainname" => set_domainname,
    "hooks" => set_hooks,
    "annotations" => set_annotations,
    "linux" => set_linux,
    "solaris" => set_solaris,
    "windows" => set_windows,
    "vm" => set_vm,
    "zos" => set_zos,
}

object! { Root = blank()?;
    "path" => set_path,
    "readonly" => set_readonly,
}

object! { Mount needs "destination";
    "destination" => set_destination,
    "type" => set_typ,
    "source" => set_source,
    "options" => set_options,
    "uidMappings" => set_uid_mappings,
    "gidMappings" => set_gid_mappings,
}

impl Write for Mount {
    fn write(&self, writer: &mut Writer) {
        writer.object(|o| {
            o.field("destination", self.destination());
            o.field("type", self.typ());
            o.field("source", self.source());
            o.field("options", self.options());
            o.field("uidMappings", self.uid_mappings());
            o.field("gidMappings", self.gid_mappings());
        });
    }
}

impl Write for LinuxIdMapping {
    fn write(&self, writer: &mut Writer) {
        writer.object(|o| {
            o.field("containerID", &self.container_id());
            o.field("hostID", &self.host_id());
            o.field("size", &self.size());
        });
    }
}

object! { Hooks;
    "prestart" => set_prestart,
    "createRuntime" => set_create_runtime,
    "createContainer" => set_create_container,
    "startContainer" => set_start_container,
    "poststart" => set_poststart,
    "poststop" => set_poststop,
}

object! { Hook;
    "path" => set_path,
    "args" => set_args,
    "env" => set_env,
    "timeout" => set_timeout,
}

object! { Process = blank_process();
    "terminal" => set_terminal,
    "consoleSize" => set_console_size,
    "user" => set_user,
    "args" => set_args,
    "commandLine" => set_command_line,
    "env" => set_env,
    "cwd" => set_cwd,
    "capabilities" => set_capabilities,
    "rlimits" => set_rlimits,
    "noNewPrivileges" => set_no_new_privileges,
    "apparmorProfile" => set_apparmor_profile,
    "oomScoreAdj" => set_oom_score_adj,
    "selinuxLabel" => set_selinux_label,
    "ioPriority" => set_io_priority,
    "scheduler" => set_scheduler,
    "execCPUAffinity" => set_exec_cpu_affinity,
}

fn blank_process() -> Process {
    let mut process = Process::default();
    process.set_terminal(None).set_args(None).set_env(None).set_cwd(Default::default());
    process.set_capabilities(None).set_rlimits(None).set_no_new_privileges(None);
    process
}

built! { Box by BoxBuilder;
    "height" => height: u64,
    "width" => width: u64,
}

object! { User;
    "uid" => set_uid,
    "gid" => set_gid,
    "umask" => set_umask,
    "additionalGids" => set_additional_gids,
    "username" => set_username,
}

object! { LinuxCapabilities = blank()?;
    "bounding" => set_bounding,
    "effective" => set_effective,
    "inheritable" => set_inheritable,
    "permitted" => set_permitted,
    "ambient" => set_ambient,
}

impl Elements for Capabilities {
    /// In capitals or not, with `CAP_` or without; what nobody knows is kept apart.
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        let name = reader.text()?;
        match Capability::from_str(name.to_ascii_uppercase().trim_start_matches("CAP_")) {
            Ok(capability) => drop(self.insert(capability)),
            Err(_) => reader.unknown_capabilities.push(name.into_owned()),
        }
        Ok(())
    }
}

impl Read for Capabilities {
    fn read(reader: &mut Reader<'_>) -> Result<Capabilities> {
        let mut set = Capabilities::new();
        reader.list(&mut set)?;
        Ok(set)
    }
}

built! { PosixRlimit by PosixRlimitBuilder needs "type";
    "type" => typ: PosixRlimitType,
    "hard" => hard: u64,
    "soft" => soft: u64,
}

choice! { PosixRlimitType;
    "RLIMIT_CPU" => RlimitCpu,
    "RLIMIT_FSIZE" => RlimitFsize,
    "RLIMIT_DATA" => RlimitData,
    "RLIMIT_STACK" => RlimitStack,
    "RLIMIT_CORE" => RlimitCore,
    "RLIMIT_RSS" => RlimitRss,
    "RLIMIT_NPROC" => RlimitNproc,
    "RLIMIT_NOFILE" => RlimitNofile,
    "RLIMIT_MEMLOCK" => RlimitMemlock,
    "RLIMIT_AS" => RlimitAs,
    "RLIMIT_LOCKS" => RlimitLocks,
    "RLIMIT_SIGPENDING" => RlimitSigpending,
    "RLIMIT_MSGQUEUE" => RlimitMsgqueue,
    "RLIMIT_NICE" => RlimitNice,
    "RLIMIT_RTPRIO" => RlimitRtprio,
    "RLIMIT_RTTIME" => RlimitRttime,
}

built! { LinuxIOPriority by LinuxIOPriorityBuilder;
    "class" => class: IOPriorityClass,
    "priority" => priority: i64,
}

choice! { IOPriorityClass;
    "IOPRIO_CLASS_RT" => IoprioClassRt,
    "IOPRIO_CLASS_BE" => IoprioClassBe,
    "IOPRIO_CLASS_IDLE" => IoprioClassIdle,
}

object! { Scheduler needs "policy";
    "policy" => set_policy,
    "nice" => set_nice,
    "priority" => set_priority,
    "flags" => set_flags,
    "runtime" => set_runtime,
    "deadline" => set_deadline,
    "period" => set_period,
}

choice! { LinuxSchedulerPolicy;
    "SCHED_OTHER" => SchedOther,
    "SCHED_FIFO" => SchedFifo,
    "SCHED_RR" => SchedRr,
    "SCHED_BATCH" => SchedBatch,
    "SCHED_ISO" => SchedIso,
    "SCHED_IDLE" => SchedIdle,
    "SCHED_DEADLINE" => SchedDeadline,
}

// As the specification spells them, which is not how the type's own serialiser does.
choice! { LinuxSchedulerFlag;
    "SCHED_FLAG_RESET_ON_FORK" => SchedResetOnFork,
    "SCHED_FLAG_RECLAIM" => SchedFlagReclaim,
    "SCHED_FLAG_DL_OVERRUN" => SchedFlagDLOverrun,
    "SCHED_FLAG_KEEP_POLICY" => SchedFlagKeepPolicy,
    "SCHED_FLAG_KEEP_PARAMS" => SchedFlagKeepParams,
    "SCHED_FLAG_UTIL_CLAMP_MIN" => SchedFlagUtilClampMin,
    "SCHED_FLAG_UTIL_CLAMP_MAX" => SchedFlagUtilClampMax,
}

object! { ExecCPUAffinity;
    "initial" => set_initial,
    "final" => set_cpu_affinity_final,
}
