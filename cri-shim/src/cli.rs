//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::person::Work;
use crate::{check, person, pull, server};

const HELP: &str = "\
rrun-cri serves pods and containers to a kubelet (CRI v1), running them with rrun.

Usage: rrun-cri [--config FILE] [COMMAND]

Commands:
  serve           serve on the configured socket (the default)
  check           say what this host lacks
  config default  print the settings with their defaults
  config          print the settings in force
  load PATH [NAME]  put images of an OCI layout or a docker-save archive into the store
  pull IMAGE [FILE]  fetch an image, with the credentials of FILE or of this user's auth.json
  images          list the images
  rmi NAME        remove an image with all its names
  inspect NAME    print an image's names, layers and configuration
  export NAME DIR write an image as an OCI image layout
  bundle NAME DIR make a bundle that `rrun run DIR` starts

Options:
  --config FILE   settings (default: /etc/rrun/rrun-cri.toml, if it is there)
  --version       print the version
  --help          print this text
";

/// Reads the command line and does what it says.
pub fn run() -> Result<ExitCode> {
    let mut file = None;
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--config" | "-c" => file = Some(PathBuf::from(arguments.next().context("--config needs a file")?)),
            "--help" | "-h" | "help" => {
                print!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            "--version" | "-v" => {
                println!("rrun-cri version {}", env!("CARGO_PKG_VERSION"));
                return Ok(ExitCode::SUCCESS);
            }
            word => match word.strip_prefix("--config=") {
                Some(path) => file = Some(path.into()),
                None if word.starts_with('-') => bail!("unknown option {word}; see rrun-cri --help"),
                None => words.push(word.to_owned()),
            },
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let load = || Config::load(file.as_deref());
    match words[..] {
        ["config", "default"] => print!("{}", Config::default().to_toml()?),
        ["config"] => print!("{}", load()?.to_toml()?),
        [] | ["serve"] => serve(load()?)?,
        ["check"] => return check::run(&load()?),
        ["load", path] => person::run(&load()?, Work::Load, "", path)?,
        ["load", path, name] => person::run(&load()?, Work::Load, name, path)?,
        ["pull", image] => pull::run(&load()?, image, None, person::open_images)?,
        ["pull", image, auth] => pull::run(&load()?, image, Some(auth.as_ref()), person::open_images)?,
        ["images"] => person::list(&load()?)?,
        ["rmi", name] => person::remove(&load()?, name)?,
        ["inspect", name] => person::run(&load()?, Work::Inspect, name, "")?,
        ["export", name, dir] => person::run(&load()?, Work::Export, name, dir)?,
        ["bundle", name, dir] => person::run(&load()?, Work::Bundle, name, dir)?,
        _ => bail!("unknown command {:?}; see rrun-cri --help", words.join(" ")),
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(config: Config) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log_level).with_context(|| format!("log_level {:?}", config.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.log_format.as_str() {
        "json" => log.json().init(),
        _ => log.with_ansi(false).init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start tokio")?;
    let result = runtime.block_on(server::serve(config));
    // What still runs in the background (a clean-up, a plugin) is taken up at the next start.
    runtime.shutdown_background();
    result
}
