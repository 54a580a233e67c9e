//! A container of a test; dropped, it is deleted by force.

use crate::bundle::Bundle;
use crate::call::{Call, Done};
use crate::host;
use crate::runtime::Runtime;
use serde_json::Value;
use std::ffi::OsStr;

/// A container that is, or will be, made from a bundle.
#[derive(Debug)]
pub struct Container<'a> {
    /// Its runtime.
    pub rt: &'a Runtime,
    /// Its id.
    pub id: String,
    /// Its bundle, written.
    pub bundle: Bundle,
}

impl<'a> Container<'a> {
    /// Writes the bundle's configuration; nothing is created yet.
    pub fn new(rt: &'a Runtime, mut bundle: Bundle, id: String) -> Container<'a> {
        bundle.write(rt, &id);
        Container { rt, id, bundle }
    }

    /// `COMMAND [FLAGS] ID`.
    pub fn call<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Call {
        self.rt.call(command).arg(&self.id)
    }

    /// `create` with more flags.
    pub fn create_with(&self, flags: &[&str]) -> Call {
        let bundle = self.bundle.dir.display().to_string();
        self.call(["create", "--bundle", &bundle].iter().chain(flags))
    }

    /// `create`.
    pub fn create(&self) -> Done {
        self.create_with(&[]).run()
    }

    /// `run` with more flags.
    pub fn run_with(&self, flags: &[&str]) -> Call {
        let bundle = self.bundle.dir.display().to_string();
        self.call(["run", "--bundle", &bundle].iter().chain(flags))
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Done {
        self.run_with(&[]).run()
    }

    /// `run` in the foreground, in a mount namespace that `setup` has prepared (see
    /// [`Runtime::call_after`]).
    pub fn run_after(&self, setup: &str) -> Done {
        self.rt.call_after(setup, ["run", "--bundle", self.bundle.dir.to_str().unwrap(), &self.id]).run()
    }

    /// `exec [FLAGS] ID ARGS`.
    pub fn exec(&self, flags: &[&str], args: &[&str]) -> Call {
        self.call(["exec"].iter().chain(flags)).args(args)
    }

    /// What `probe try ACTIONS` answers inside the running container.
    #[track_caller]
    pub fn tries(&self, actions: &[&str]) -> Value {
        let args: Vec<&str> = ["/probe", "try"].iter().chain(actions).copied().collect();
        self.exec(&[], &args).ok().json()
    }

    /// What `state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.call(["state"]).ok().json()
    }

    /// Its status word.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_string()
    }

    /// Process id of its first process.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().unwrap_or_default() as i32
    }

    /// Waits for a status; fails the test if it does not come.
    #[track_caller]
    pub fn wait_status(&self, status: &str) {
        assert!(host::wait_until(20, || self.status() == status), "{}: not {status} but {}", self.id, self.state());
    }

    /// `kill ID SIGNAL`.
    pub fn kill(&self, signal: &str) -> Done {
        self.call(["kill"]).arg(signal).run()
    }

    /// `delete`.
    pub fn delete(&self) -> Done {
        self.call(["delete"]).run()
    }

    /// Kills it, waits for its end and deletes it.
    #[track_caller]
    pub fn end(&self) {
        self.kill("KILL").ok();
        self.wait_status("stopped");
        self.delete().ok();
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.rt.root().join(&self.id).exists() {
            let done = self.call(["delete", "--force"]).run();
            if !std::thread::panicking() {
                done.ok();
            }
        }
    }
}
