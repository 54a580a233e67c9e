//! StopContainer: signals and graces.

use rrun_proto::v1;
use tests::host::wait_until;

use crate::client::{Container, Pod, script};
use crate::node::Node;
use crate::node_or_skip;

/// Says which signal came, and ends with 40 and more.
const TELLS: &str = "trap 'echo term; exit 41' TERM; trap 'echo usr1; exit 42' USR1; trap 'echo int; exit 43' INT; trap 'exit 44' 37; \
                     echo up; while :; do sleep 0.05; done";
/// Counts SIGTERM and goes on.
const IGNORES: &str = "trap 'echo term' TERM; echo up; while :; do sleep 0.05; done";

fn started<'a>(pod: &Pod<'a>, text: &str, signal: v1::Signal) -> Container<'a> {
    let mut config = script(text);
    config.stop_signal = signal.into();
    let container = pod.start(&config);
    container.wait_for_line("up");
    container
}

#[test]
fn the_stop_signal_is_the_pods_the_images_or_term() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    for (signal, code) in
        [(v1::Signal::RuntimeDefault, 41), (v1::Signal::Sigusr1, 42), (v1::Signal::Sigint, 43), (v1::Signal::Sigrtminplus3, 44)]
    {
        let container = started(&pod, TELLS, signal);
        container.stop(20).unwrap();
        assert_eq!(container.status().exit_code, code, "{signal:?}");
        if signal != v1::Signal::RuntimeDefault {
            assert_eq!(container.status().stop_signal(), signal);
        }
    }
    let mut config = script(TELLS);
    config.image = Some(v1::ImageSpec { image: crate::image::FULL.into(), ..Default::default() });
    let container = pod.start(&config);
    container.wait_for_line("up");
    container.stop(20).unwrap();
    assert_eq!(container.status().exit_code, 42, "the image's SIGUSR1");
    pod.end();
}

#[test]
fn who_does_not_end_is_killed_after_the_grace() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = started(&pod, IGNORES, v1::Signal::RuntimeDefault);
    container.stop(1).unwrap();
    assert_eq!(container.status().exit_code, 137);
    assert!(container.log().iter().any(|line| line.text == "term"));
    let container = started(&pod, IGNORES, v1::Signal::RuntimeDefault);
    container.stop(0).unwrap();
    assert_eq!(container.status().exit_code, 137);
    assert!(!container.log().iter().any(|line| line.text == "term"), "no grace, no signal but KILL");
    pod.end();
}

#[test]
fn a_shorter_grace_overtakes_and_the_signal_comes_once() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = started(&pod, IGNORES, v1::Signal::RuntimeDefault);
    std::thread::scope(|scope| {
        let long = scope.spawn(|| container.stop(600));
        assert!(wait_until(10, || container.log().iter().any(|line| line.text == "term")));
        container.stop(1).unwrap();
        long.join().unwrap().unwrap();
    });
    assert_eq!(container.status().exit_code, 137);
    assert_eq!(container.log().iter().filter(|line| line.text == "term").count(), 1);
    pod.end();
}

#[test]
fn stopping_a_pod_ends_its_containers() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let containers: Vec<_> = (0..3).map(|_| started(&pod, IGNORES, v1::Signal::RuntimeDefault)).collect();
    pod.stop().unwrap();
    for container in containers {
        let status = container.status();
        assert_eq!((status.state(), status.exit_code), (v1::ContainerState::ContainerExited, 137));
    }
    pod.end();
}

#[test]
fn a_created_container_that_is_stopped_stays_created_or_ends() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.create(&script("true")).unwrap();
    container.stop(5).unwrap();
    container.remove().unwrap();
    node.assert_gone(&[container.id]);
    pod.end();
}
