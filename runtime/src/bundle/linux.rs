//! The configuration's `linux` section; `linux.resources` is also the document of `update --resources`.

use super::fields::{blank, built, choice, object};
use crate::json::read::{Error, Fields, Read, Reader, Result};
use oci_spec::runtime::*;

object! { Linux = blank()?;
    "netDevices" => set_net_devices,
    "uidMappings" => set_uid_mappings,
    "gidMappings" => set_gid_mappings,
    "sysctl" => set_sysctl,
    "resources" => set_resources,
    "cgroupsPath" => set_cgroups_path,
    "namespaces" => set_namespaces,
    "devices" => set_devices,
    "seccomp" => set_seccomp,
    "rootfsPropagation" => set_rootfs_propagation,
    "maskedPaths" => set_masked_paths,
    "readonlyPaths" => set_readonly_paths,
    "mountLabel" => set_mount_label,
    "intelRdt" => set_intel_rdt,
    "memoryPolicy" => set_memory_policy,
    "personality" => set_personality,
    "timeOffsets" => set_time_offsets,
}

object! { LinuxNetDevice;
    "name" => set_name,
}

built! { LinuxIdMapping by LinuxIdMappingBuilder;
    "containerID" => container_id: u32,
    "hostID" => host_id: u32,
    "size" => size: u32,
}

object! { LinuxNamespace needs "type";
    "type" => set_typ,
    "path" => set_path,
}

choice! { LinuxNamespaceType;
    "pid" => Pid,
    "network" => Network,
    "mount" => Mount,
    "ipc" => Ipc,
    "uts" => Uts,
    "user" => User,
    "cgroup" => Cgroup,
    "time" => Time,
}

object! { LinuxDevice needs "type";
    "path" => set_path,
    "type" => set_typ,
    "major" => set_major,
    "minor" => set_minor,
    "fileMode" => set_file_mode,
    "uid" => set_uid,
    "gid" => set_gid,
}

choice! { LinuxDeviceType;
    "a" => A,
    "b" => B,
    "c" => C,
    "u" => U,
    "p" => P,
}

object! { LinuxIntelRdt;
    "closID" => set_clos_id,
    "schemata" => set_schemata,
    "l3CacheSchema" => set_l3_cache_schema,
    "memBwSchema" => set_mem_bw_schema,
    "enableCmt" => set_enable_cmt,
    "enableMbm" => set_enable_mbm,
    "enableMonitoring" => set_enable_monitoring,
}

object! { LinuxMemoryPolicy needs "mode (invalid memory policy mode)";
    "mode" => set_mode,
    "nodes" => set_nodes,
    "flags" => set_flags,
}

choice! { MemoryPolicyModeType, "invalid memory policy mode";
    "MPOL_DEFAULT" => MpolDefault,
    "MPOL_BIND" => MpolBind,
    "MPOL_INTERLEAVE" => MpolInterleave,
    "MPOL_WEIGHTED_INTERLEAVE" => MpolWeightedInterleave,
    "MPOL_PREFERRED" => MpolPreferred,
    "MPOL_PREFERRED_MANY" => MpolPreferredMany,
    "MPOL_LOCAL" => MpolLocal,
}

choice! { MemoryPolicyFlagType, "invalid memory policy flag";
    "MPOL_F_NUMA_BALANCING" => MpolFNumaBalancing,
    "MPOL_F_RELATIVE_NODES" => MpolFRelativeNodes,
    "MPOL_F_STATIC_NODES" => MpolFStaticNodes,
}

object! { LinuxPersonality needs "domain";
    "domain" => set_domain,
    "flags" => set_flags,
}

choice! { LinuxPersonalityDomain;
    "LINUX" => PerLinux,
    "LINUX32" => PerLinux32,
}

object! { LinuxTimeOffset;
    "secs" => set_secs,
    "nanosecs" => set_nanosecs,
}

object! { LinuxResources;
    "devices" => set_devices,
    "memory" => set_memory,
    "cpu" => set_cpu,
    "pids" => set_pids,
    "blockIO" => set_block_io,
    "hugepageLimits" => set_hugepage_limits,
    "network" => set_network,
    "rdma" => set_rdma,
    "unified" => set_unified,
}

object! { LinuxDeviceCgroup;
    "allow" => set_allow,
    "type" => set_typ,
    "major" => set_major,
    "minor" => set_minor,
    "access" => set_access,
}

object! { LinuxMemory;
    "limit" => set_limit,
    "reservation" => set_reservation,
    "swap" => set_swap,
    "kernel" => set_kernel,
    "kernelTCP" => set_kernel_tcp,
    "swappiness" => set_swappiness,
    "disableOOMKiller" => set_disable_oom_killer,
    "useHierarchy" => set_use_hierarchy,
    "checkBeforeUpdate" => set_check_before_update,
}

object! { LinuxCpu;
    "shares" => set_shares,
    "quota" => set_quota,
    "idle" => set_idle,
    "burst" => set_burst,
    "period" => set_period,
    "realtimeRuntime" => set_realtime_runtime,
    "realtimePeriod" => set_realtime_period,
    "cpus" => set_cpus,
    "mems" => set_mems,
}

object! { LinuxPids;
    "limit" => set_limit,
}

object! { LinuxBlockIo;
    "weight" => set_weight,
    "leafWeight" => set_leaf_weight,
    "weightDevice" => set_weight_device,
    "throttleReadBpsDevice" => set_throttle_read_bps_device,
    "throttleWriteBpsDevice" => set_throttle_write_bps_device,
    "throttleReadIOPSDevice" => set_throttle_read_iops_device,
    "throttleWriteIOPSDevice" => set_throttle_write_iops_device,
}

built! { LinuxWeightDevice by LinuxWeightDeviceBuilder;
    "major" => major: i64,
    "minor" => minor: i64,
    "weight" => weight: u16,
    "leafWeight" => leaf_weight: u16,
}

built! { LinuxThrottleDevice by LinuxThrottleDeviceBuilder;
    "major" => major: i64,
    "minor" => minor: i64,
    "rate" => rate: u64,
}

object! { LinuxHugepageLimit;
    "pageSize" => set_page_size,
    "limit" => set_limit,
}

object! { LinuxNetwork;
    "classID" => set_class_id,
    "priorities" => set_priorities,
}

object! { LinuxInterfacePriority;
    "name" => set_name,
    "priority" => set_priority,
}

built! { LinuxRdma by LinuxRdmaBuilder;
    "hcaHandles" => hca_handles: u32,
    "hcaObjects" => hca_objects: u32,
}

object! { LinuxSeccomp needs "defaultAction";
    "defaultAction" => set_default_action,
    "defaultErrnoRet" => set_default_errno_ret,
    "architectures" => set_architectures,
    "flags" => set_flags,
    "listenerPath" => set_listener_path,
    "listenerMetadata" => set_listener_metadata,
    "syscalls" => set_syscalls,
}

choice! { LinuxSeccompAction;
    "SCMP_ACT_KILL" => ScmpActKill,
    "SCMP_ACT_KILL_THREAD" => ScmpActKillThread,
    "SCMP_ACT_KILL_PROCESS" => ScmpActKillProcess,
    "SCMP_ACT_TRAP" => ScmpActTrap,
    "SCMP_ACT_ERRNO" => ScmpActErrno,
    "SCMP_ACT_NOTIFY" => ScmpActNotify,
    "SCMP_ACT_TRACE" => ScmpActTrace,
    "SCMP_ACT_LOG" => ScmpActLog,
    "SCMP_ACT_ALLOW" => ScmpActAllow,
}

choice! { Arch;
    "SCMP_ARCH_NATIVE" => ScmpArchNative,
    "SCMP_ARCH_X86" => ScmpArchX86,
    "SCMP_ARCH_X86_64" => ScmpArchX86_64,
    "SCMP_ARCH_X32" => ScmpArchX32,
    "SCMP_ARCH_ARM" => ScmpArchArm,
    "SCMP_ARCH_AARCH64" => ScmpArchAarch64,
    "SCMP_ARCH_MIPS" => ScmpArchMips,
    "SCMP_ARCH_MIPS64" => ScmpArchMips64,
    "SCMP_ARCH_MIPS64N32" => ScmpArchMips64n32,
    "SCMP_ARCH_MIPSEL" => ScmpArchMipsel,
    "SCMP_ARCH_MIPSEL64" => ScmpArchMipsel64,
    "SCMP_ARCH_MIPSEL64N32" => ScmpArchMipsel64n32,
    "SCMP_ARCH_PPC" => ScmpArchPpc,
    "SCMP_ARCH_PPC64" => ScmpArchPpc64,
    "SCMP_ARCH_PPC64LE" => ScmpArchPpc64le,
    "SCMP_ARCH_S390" => ScmpArchS390,
    "SCMP_ARCH_S390X" => ScmpArchS390x,
    "SCMP_ARCH_PARISC" => ScmpArchParisc,
    "SCMP_ARCH_PARISC64" => ScmpArchParisc64,
    "SCMP_ARCH_RISCV64" => ScmpArchRiscv64,
    "SCMP_ARCH_LOONGARCH64" => ScmpArchLoongarch64,
    "SCMP_ARCH_M68K" => ScmpArchM68k,
    "SCMP_ARCH_SH" => ScmpArchSh,
    "SCMP_ARCH_SHEB" => ScmpArchSheb,
}

choice! { LinuxSeccompFilterFlag;
    "SECCOMP_FILTER_FLAG_LOG" => SeccompFilterFlagLog,
    "SECCOMP_FILTER_FLAG_TSYNC" => SeccompFilterFlagTsync,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => SeccompFilterFlagSpecAllow,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => SeccompFilterFlagWaitKillableRecv,
}

object! { LinuxSyscall needs "action";
    "names" => set_names,
    "action" => set_action,
    "errnoRet" => set_errno_ret,
    "args" => set_args,
}

built! { LinuxSeccompArg by LinuxSeccompArgBuilder needs "op";
    "index" => index: usize,
    "value" => value: u64,
    "valueTwo" => value_two: u64,
    "op" => op: LinuxSeccompOperator,
}

choice! { LinuxSeccompOperator;
    "SCMP_CMP_NE" => ScmpCmpNe,
    "SCMP_CMP_LT" => ScmpCmpLt,
    "SCMP_CMP_LE" => ScmpCmpLe,
    "SCMP_CMP_EQ" => ScmpCmpEq,
    "SCMP_CMP_GE" => ScmpCmpGe,
    "SCMP_CMP_GT" => ScmpCmpGt,
    "SCMP_CMP_MASKED_EQ" => ScmpCmpMaskedEq,
}
