//! Users, groups, capabilities, seccomp, privileged containers, user namespaces.

use rrun_proto::v1;
use rrun_proto::v1::security_profile::ProfileType;

use crate::client::{Pod, namespaces, script, security};
use crate::node::Node;
use crate::{image, node_or_skip};

fn number(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

/// Lines of `id`: user, group, groups.
const ID: &str = "id -u; id -g; id -G";

#[test]
fn users_and_groups() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let run = |change: &dyn Fn(&mut v1::ContainerConfig)| {
        let mut config = script(ID);
        change(&mut config);
        let container = pod.start(&config);
        container.ended();
        let user = container.status().user.unwrap().linux.unwrap();
        let text: Vec<_> = container.log().into_iter().map(|line| line.text).collect();
        let mut groups: Vec<i64> = text[2].split(' ').map(|group| group.parse().unwrap()).collect();
        groups.sort();
        let mut reported = user.supplemental_groups.clone();
        reported.push(user.gid);
        reported.sort();
        reported.dedup();
        assert_eq!(
            (user.uid.to_string(), user.gid.to_string(), &reported),
            (text[0].clone(), text[1].clone(), &groups),
            "the status tells the truth"
        );
        (text[0].clone(), text[1].clone(), groups)
    };
    let expect = |uid: &str, gid: &str, groups: &[i64]| (uid.to_owned(), gid.to_owned(), groups.to_vec());
    assert_eq!(run(&|_| {}), expect("0", "0", &[0]));
    let of_image = |c: &mut v1::ContainerConfig| c.image.as_mut().unwrap().image = image::USER.into();
    assert_eq!(run(&of_image), expect("1000", "1000", &[1000, 50000]), "the image's user with the image's groups");
    assert_eq!(run(&|c| security(c).run_as_username = "tester".into()), expect("1000", "1000", &[1000, 50000]));
    assert_eq!(run(&|c| security(c).run_as_user = number(4321)), expect("4321", "0", &[0]), "not in /etc/passwd");
    let both = |c: &mut v1::ContainerConfig| (security(c).run_as_user, security(c).run_as_group) = (number(1000), number(77));
    assert_eq!(run(&both), expect("1000", "77", &[77, 50000]));
    let more = |c: &mut v1::ContainerConfig| security(c).supplemental_groups = vec![8, 9];
    assert_eq!(run(&|c| (of_image(c), more(c)).0), expect("1000", "1000", &[8, 9, 1000, 50000]), "merged");
    let strict = |c: &mut v1::ContainerConfig| {
        of_image(c);
        more(c);
        security(c).supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
    };
    assert_eq!(run(&strict), expect("1000", "1000", &[8, 9, 1000]), "the image's are not taken");
    pod.end();
}

/// A line of /proc/self/status in a container.
#[track_caller]
fn proc_status(pod: &Pod, field: &str, change: impl FnOnce(&mut v1::ContainerConfig)) -> String {
    let mut config = script(&format!("sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status"));
    change(&mut config);
    pod.output(&config).concat()
}

fn has(set: &str, capability: u32) -> bool {
    u64::from_str_radix(set, 16).unwrap() & (1 << capability) != 0
}

#[test]
fn capabilities_are_added_dropped_and_bounded() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let (chown, net_admin) = (0, 12);
    let usual = proc_status(&pod, "CapEff", |_| {});
    assert!(has(&usual, chown) && !has(&usual, net_admin), "{usual}");
    let change = |add: &[&str], drop: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = v1::Capability { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() };
        move |config: &mut v1::ContainerConfig| security(config).capabilities = Some(capabilities)
    };
    let added = proc_status(&pod, "CapEff", change(&["NET_ADMIN"], &["CHOWN"]));
    assert!(has(&added, net_admin) && !has(&added, chown), "{added}");
    assert_eq!(proc_status(&pod, "CapBnd", change(&[], &["ALL"])), "0000000000000000");
    let one = proc_status(&pod, "CapEff", change(&["CAP_NET_ADMIN"], &["ALL"]));
    assert_eq!(u64::from_str_radix(&one, 16).unwrap(), 1 << net_admin);
    pod.end();
}

#[test]
fn no_new_privileges_and_a_root_that_is_read_only() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    assert_eq!(proc_status(&pod, "NoNewPrivs", |_| {}), "0");
    assert_eq!(proc_status(&pod, "NoNewPrivs", |c| security(c).no_new_privs = true), "1");
    let mut config = script("touch /new 2>/dev/null || echo read-only; touch /dev/shm/new && echo shm");
    security(&mut config).readonly_rootfs = true;
    assert_eq!(pod.output(&config), ["read-only", "shm"]);
    let mut config = script("cat /proc/keys 2>/dev/null | wc -c; touch /proc/sys/kernel/x 2>/dev/null || echo no");
    security(&mut config).masked_paths = vec!["/proc/keys".into()];
    security(&mut config).readonly_paths = vec!["/proc/sys".into()];
    assert_eq!(pod.output(&config), ["0", "no"]);
    pod.end();
}

#[test]
fn seccomp_profiles() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let profile = |kind: ProfileType, file: &str| {
        let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: file.into() };
        move |config: &mut v1::ContainerConfig| security(config).seccomp = Some(profile)
    };
    assert_eq!(proc_status(&pod, "Seccomp", |_| {}), "0", "nothing said: none");
    assert_eq!(proc_status(&pod, "Seccomp", profile(ProfileType::RuntimeDefault, "")), "2");
    assert_eq!(proc_status(&pod, "Seccomp", profile(ProfileType::Unconfined, "")), "0");
    let file = node.dir().join("shared/no-mkdir.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
    std::fs::write(&file, text).unwrap();
    let mut config = script("mkdir /tmp/x 2>/dev/null || echo refused");
    profile(ProfileType::Localhost, file.to_str().unwrap())(&mut config);
    assert_eq!(pod.output(&config), ["refused"]);
    // The default profile lets ordinary programs run and refuses what containers have no use for.
    let mut config = script("mount -t tmpfs none /tmp 2>/dev/null || echo refused; sh -c 'sleep 0.1 & wait' && echo fine");
    security(&mut config).capabilities = Some(v1::Capability { add_capabilities: vec!["SYS_BOOT".into()], ..Default::default() });
    profile(ProfileType::RuntimeDefault, "")(&mut config);
    assert_eq!(pod.output(&config), ["refused", "fine"]);
    pod.end();
}

#[test]
fn privileged_containers() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod_with(|config| config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true);
    let mut config = script(
        "sed -n 's/^Cap[EB][fn][fd]:.//p;s/^Seccomp:.//p' /proc/self/status; mount -t tmpfs none /tmp && echo mounted; [ -e /dev/kmsg ] && echo devices",
    );
    security(&mut config).privileged = true;
    security(&mut config).seccomp = Some(v1::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    let seen = pod.output(&config);
    assert_eq!(u64::from_str_radix(&seen[0], 16).unwrap(), tests::host::capability_bounding_set(), "{seen:?}");
    assert_eq!(seen[2..], ["0", "mounted", "devices"], "no filter");
    pod.end();
}

#[test]
fn user_namespaces_are_the_pods() {
    let node = node_or_skip!(Node::shared());
    let maps = vec![v1::IdMapping { host_id: 1_000_000, container_id: 0, length: 65536 }];
    let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: maps.clone(), gids: maps };
    let pod = node.pod_with(|config| {
        namespaces(config).network = v1::NamespaceMode::Pod.into();
        namespaces(config).userns_options = Some(user.clone());
    });
    let host = node.dir().join("shared/volume-of-userns");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("file"), "volume\n").unwrap();
    let mut config = script("cat /proc/self/uid_map; id -u; touch /new /v/new && stat -c %u /new /bin/busybox /v/file; sleep 1000");
    security(&mut config).namespace_options.get_or_insert_default().userns_options = Some(user.clone());
    config.mounts = vec![v1::Mount {
        host_path: host.display().to_string(),
        container_path: "/v".into(),
        uid_mappings: user.uids.clone(),
        gid_mappings: user.gids.clone(),
        ..Default::default()
    }];
    let container = pod.start(&config);
    assert!(tests::host::wait_until(10, || container.log().len() == 5), "{:?}", container.log());
    let text: Vec<_> = container.log().into_iter().map(|line| line.text.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(text, ["0 1000000 65536", "0", "0", "0", "0"]);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(host.join("new")).unwrap().uid(), 0, "an id-mapped volume");
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    assert!(status.lines().any(|line| line.starts_with("Uid:") && line.contains("1000000")), "{status}");
    assert_eq!(container.sh("id -u"), "0");
    pod.end();
    // Containers cannot have another than the pod's.
    let pod = node.pod();
    let mut config = script("true");
    security(&mut config).namespace_options.get_or_insert_default().userns_options = Some(user);
    let status = pod.create(&config).map(drop).unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    pod.end();
}
