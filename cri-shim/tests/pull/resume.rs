//! What was fetched once is not fetched again: after a break, a stall, a restart, and by two pulls at the same time.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rrun_cri::images::{Credentials, Reference};

use super::fake::{Asked, Fake, Reply};
use super::image::{gzip, image, noise, tar};
use super::world::World;

const LARGE: usize = 6 << 20;

fn ranges(fake: &Fake, digest: &str) -> Vec<String> {
    fake.log().iter().filter(|asked| asked.path.ends_with(digest)).map(|asked| asked.header("range").to_owned()).collect()
}

fn first(digest: &str, reply: Reply) -> impl Fn(&Asked) -> Reply + Send + Sync + 'static {
    let digest = digest.to_owned();
    move |asked| if asked.path.ends_with(&digest) && asked.before == 0 { reply.clone() } else { Reply::Good }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_goes_on_where_it_broke() {
    let made = image(&[LARGE, 1000]);
    let layer = made.layers[0].to_string();
    for reply in [Reply::Cut(3 << 20), Reply::Stall(3 << 20)] {
        let (world, fake) = (World::new(), Fake::start(made.content.clone(), first(&layer, reply)));
        let pulled = world.pull(&fake.image("x")).await.unwrap();
        assert_eq!(std::fs::read(pulled.layers[0].join("layer-0")).unwrap(), noise(1, LARGE));
        assert_eq!(ranges(&fake, &layer), ["", &format!("bytes={}-", 3 << 20)]);
        assert!(world.partials().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_begins_anew_and_the_pull_does_not() {
    let made = image(&[LARGE]);
    let layer = made.layers[0].to_string();
    let digest = layer.clone();
    let fake = Fake::start(made.content.clone(), move |asked| match (asked.path.ends_with(&digest), asked.before) {
        (true, 0) => Reply::Cut(1 << 20),
        (true, _) => Reply::NoRange,
        _ => Reply::Good,
    });
    let world = World::new();
    world.pull(&fake.image("x")).await.unwrap();
    assert_eq!(ranges(&fake, &layer).len(), 2);
}

/// A pull that is given up when the server stalls after `bytes`; what it kept is on disk then.
async fn give_up_after(world: &World, fake: &Fake, bytes: u64) {
    let reference = Reference::parse(&fake.image("x")).unwrap();
    let pull = world.puller().pull(&reference, Credentials::Anonymous, |_| ());
    let enough = async {
        while world.partials().first().is_none_or(|(_, size)| *size < bytes) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = pull => panic!("the pull ended: {:?}", result.map(|image| image.id.clone())),
        () = enough => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_fetches_the_rest_only() {
    let made = image(&[LARGE]);
    let layer = made.layers[0].to_string();
    let kept = 5 << 20;
    let (mut world, fake) = (World::new(), Fake::start(made.content.clone(), first(&layer, Reply::Stall(kept))));
    give_up_after(&world, &fake, kept as u64).await;
    world.assert_untouched();
    world.restart();
    let pulled = world.pull(&fake.image("x")).await.unwrap();
    assert_eq!(std::fs::read(pulled.layers[0].join("layer-0")).unwrap(), noise(1, LARGE));
    assert_eq!(ranges(&fake, &layer), ["", &format!("bytes={kept}-")]);
    assert!(world.partials().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoilt_partial_file_costs_time_only() {
    let made = image(&[LARGE]);
    let layer = made.layers[0].to_string();
    let (world, fake) = (World::new(), Fake::start(made.content.clone(), |_| Reply::Good));
    let partial = world.images().partial_dir().join(layer.replace(':', "-"));
    let good = made.content.blobs[&layer].clone();
    // As after a loss of power: the right length, and other bytes; longer than the blob; another blob's end.
    for bytes in [[&good[..4 << 20], &[0; 1 << 20][..]].concat(), vec![7; LARGE * 2], gzip(&tar(&[("x", &noise(9, LARGE))]))] {
        std::fs::write(&partial, bytes).unwrap();
        world.pull(&fake.image("x")).await.unwrap();
        assert!(world.partials().is_empty());
        world.images().remove(&fake.image("x")).unwrap();
        // Nothing of the pull keeps the image any more.
        assert_eq!(std::fs::read_dir(world.path("store/layers")).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_there_needs_no_partial_file() {
    let made = image(&[LARGE]);
    let layer = made.layers[0].to_string();
    let (world, fake) = (World::new(), Fake::start(made.content.clone(), |_| Reply::Good));
    world.pull(&fake.image("x")).await.unwrap();
    std::fs::write(world.images().partial_dir().join(layer.replace(':', "-")), [7; 100]).unwrap();
    world.pull(&fake.image("x")).await.unwrap();
    assert!(world.partials().is_empty());
    assert_eq!(ranges(&fake, &layer).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_are_one_and_one_may_leave() {
    let made = image(&[LARGE]);
    let layer = made.layers[0].to_string();
    let go = Arc::new(AtomicBool::new(false));
    let (gate, digest) = (go.clone(), layer.clone());
    let fake = Fake::start(made.content.clone(), move |asked| {
        while asked.path.ends_with(&digest) && !gate.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Reply::Good
    });
    let world = World::new();
    let reference = Reference::parse(&fake.image("x")).unwrap();
    let pull = || {
        let (puller, reference) = (world.puller().clone(), reference.clone());
        tokio::spawn(async move { puller.pull(&reference, Credentials::Anonymous, |_| ()).await })
    };
    let (leaves, stays) = (pull(), pull());
    while ranges(&fake, &layer).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leaves.abort();
    let _ = leaves.await;
    go.store(true, Ordering::Relaxed);
    assert_eq!(stays.await.unwrap().unwrap().id, made.id.to_string());
    assert_eq!(ranges(&fake, &layer).len(), 1);
    assert_eq!(fake.log().iter().filter(|asked| asked.path.contains("/manifests/")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_share_layers_and_a_tag_moves() {
    let (one, two) = (image(&[LARGE, 1000]), image(&[LARGE, 2000]));
    let mut content = one.content.clone();
    content.blobs.extend(two.content.blobs.clone());
    content.manifests.extend(two.content.manifests.clone());
    for (tag, made) in [("one", &one), ("two", &two)] {
        let manifest = content.manifests[made.manifest.as_str()].clone();
        content.manifests.insert(tag.to_owned(), manifest);
    }
    let (world, fake) = (World::new(), Fake::start(content, |_| Reply::Good));
    let (first, second) = (fake.image("x:one"), fake.image("x:two"));
    let (first, second) = tokio::join!(world.pull(&first), world.pull(&second));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.layers[0], second.layers[0]);
    assert_eq!(ranges(&fake, one.layers[0].as_str()).len(), 1);
    assert_eq!(second.repo_digests, [fake.image(&format!("x@{}", two.manifest))]);
    // Once more: the manifest is asked for, and nothing else.
    let before = fake.log().len();
    world.pull(&fake.image("x:one")).await.unwrap();
    assert_eq!(fake.log().len(), before + 1);
}
