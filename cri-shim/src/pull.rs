//! `rrun-cri pull IMAGE`: through the daemon where one runs, into the store itself otherwise. Progress goes to standard error,
//! as bars on a terminal and as a line per layer elsewhere; the image's id goes to standard output.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rrun_proto::rrun::images_client::ImagesClient;
use rrun_proto::rrun::{LayerProgress, LayerState, PullRequest};
use tonic::transport::Endpoint;

use crate::config::Config;
use crate::images::progress::{Layer, State};
use crate::images::{Credentials, Digest, Images, Puller, Reference, credentials};

/// Pulls an image with this user's credentials (or those of `auth_file`) and prints its id. `open` opens the store.
pub fn run(config: &Config, image: &str, auth_file: Option<&Path>, open: impl FnOnce(&Config) -> Result<Images>) -> Result<()> {
    let reference = Reference::parse(image)?;
    let credentials = credentials(&reference, auth_file)?;
    let mut display = Display::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start tokio")?;
    let id = runtime.block_on(async {
        // A daemon that is there has the store for itself.
        let pull = async {
            match tokio::net::UnixStream::connect(&config.socket).await {
                Ok(_) => through_daemon(config, &reference, credentials, &mut display).await,
                Err(_) => {
                    let puller = Puller::new(open(config)?, &config.images);
                    Ok(puller.pull(&reference, credentials, |layers| display.show(layers)).await?.id.clone())
                }
            }
        };
        tokio::select! {
            result = pull => result,
            _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted; the next pull goes on from here")),
        }
    });
    display.clear();
    println!("{}", id?);
    Ok(())
}

async fn through_daemon(config: &Config, reference: &Reference, credentials: Credentials, display: &mut Display) -> Result<String> {
    let place = || format!("daemon at {}", config.socket.display());
    let channel = Endpoint::from_shared(format!("unix://{}", config.socket.display()))?.connect().await.with_context(place)?;
    let mut request = PullRequest { image: reference.to_string(), ..PullRequest::default() };
    match credentials {
        Credentials::Anonymous => {}
        Credentials::Basic { username, password } => (request.username, request.password) = (username, password),
        Credentials::Identity(token) => request.identity_token = token,
        Credentials::Registry(token) => request.registry_token = token,
    }
    let told = |status: tonic::Status| anyhow!("{}", status.message());
    let mut stream = ImagesClient::new(channel).pull(request).await.map_err(told)?.into_inner();
    while let Some(progress) = stream.message().await.map_err(told)? {
        if !progress.image_id.is_empty() {
            return Ok(progress.image_id);
        }
        display.show(&progress.layers.iter().filter_map(layer).collect::<Vec<_>>());
    }
    Err(anyhow!("the daemon ended before the pull did")).with_context(place)
}

fn layer(progress: &LayerProgress) -> Option<Layer> {
    let state = match progress.state() {
        LayerState::Waiting => State::Waiting,
        LayerState::Present => State::Present,
        LayerState::Fetching => State::Fetching,
        LayerState::Done => State::Done,
    };
    Some(Layer { digest: Digest::parse(&progress.digest).ok()?, current: progress.current, total: progress.total, state })
}

/// Most bars at a time; the rest is in the sum.
const BARS: usize = 8;
const FRAME: Duration = Duration::from_millis(100);

struct Display {
    terminal: bool,
    /// Lines that stand on the terminal.
    drawn: usize,
    last: Option<Instant>,
    /// Layers whose line was printed.
    said: Vec<bool>,
}

impl Display {
    fn new() -> Display {
        Display { terminal: std::io::stderr().is_terminal(), drawn: 0, last: None, said: Vec::new() }
    }

    fn show(&mut self, layers: &[Layer]) {
        let text = match self.terminal {
            true if self.last.is_some_and(|last| last.elapsed() < FRAME) => return,
            true => self.bars(layers),
            false => self.lines(layers),
        };
        self.last = Some(Instant::now());
        // A terminal that went away does not end the pull.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn bars(&mut self, layers: &[Layer]) -> String {
        let mut text = self.erase();
        let running: Vec<&Layer> = layers.iter().filter(|layer| layer.state == State::Fetching).take(BARS).collect();
        for layer in &running {
            text += &format!("{:.12} {}\n", layer.digest.hex(), bar(layer.current, layer.total));
        }
        let over = layers.iter().filter(|layer| matches!(layer.state, State::Present | State::Done)).count();
        let new = || layers.iter().filter(|layer| layer.state != State::Present);
        let (current, total) = (new().map(|l| l.current).sum(), new().map(|l| l.total).sum());
        text += &format!("{over:>5}/{:<6} {}\n", layers.len(), bar(current, total));
        self.drawn = running.len() + 1;
        text
    }

    fn lines(&mut self, layers: &[Layer]) -> String {
        self.said.resize(layers.len(), false);
        let mut text = String::new();
        for (layer, said) in layers.iter().zip(&mut self.said) {
            let word = match layer.state {
                State::Present => "present",
                State::Done => "done",
                State::Waiting | State::Fetching => continue,
            };
            if !std::mem::replace(said, true) {
                text += &format!("layer {:.12} {word}, {}\n", layer.digest.hex(), size(layer.total));
            }
        }
        text
    }

    /// Up to where the bars begin, and empty from there.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    fn clear(&mut self) {
        let text = self.erase();
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

fn bar(current: u64, total: u64) -> String {
    const WIDTH: u64 = 30;
    let full = (current.min(total) * WIDTH).checked_div(total).unwrap_or(WIDTH) as usize;
    format!("[{}{}] {} of {}", "=".repeat(full), " ".repeat(WIDTH as usize - full), size(current), size(total))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_lines() {
        let layer = |current, total, state| Layer { digest: Digest::of(b"x"), current, total, state };
        let layers = [layer(0, 10, State::Present), layer(1_500_000, 3_000_000, State::Fetching), layer(999, 999, State::Done)];
        let mut display = Display { terminal: true, drawn: 0, last: None, said: Vec::new() };
        let text = display.bars(&layers);
        assert!(text.starts_with("2d711642b726 [===============               ] 1.5 MB of 3.0 MB\n    2/3 "), "{text}");
        assert!(display.bars(&layers).starts_with("\x1b[2A\x1b[J"));
        assert_eq!(display.lines(&layers), "layer 2d711642b726 present, 10 B\nlayer 2d711642b726 done, 999 B\n");
        assert_eq!(display.lines(&layers), "");
        assert_eq!(bar(0, 0), format!("[{}] 0 B of 0 B", "=".repeat(30)));
    }
}
