//! Help texts and man pages, made of the table.

use super::parse::{self, Parsed};
use super::table::{COMMANDS, Command, Flag, GLOBAL_FLAGS};
use crate::bundle::SPEC_VERSION;
use crate::commands::output::print;
use anyhow::Result;
use std::fmt::Write;

/// The release.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What it was built from.
pub(crate) const COMMIT: &str = match option_env!("RRUN_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

const ABOUT: &str = "rrun runs containers from bundles as the OCI runtime specification describes them: a folder with a config.json and a root file system. It takes runc's command line, so that Docker, containerd, Podman and CRI-O can use it in its place.";

/// `help [COMMAND] [--man]`.
pub(super) fn run(p: &Parsed) -> Result<i32> {
    let command = p.operands.first().map(|name| parse::known(name)).transpose()?;
    match (command, p.on("man")) {
        (None, false) => overview("rrun"),
        (Some(command), false) => of("rrun", command),
        (None, true) => print(&man()).map(|()| 0),
        (Some(command), true) => print(&man_of(command)).map(|()| 0),
    }
}

/// `--version`. Callers take the last line with the word for the release: there must be one only.
pub(super) fn version(me: &str) -> Result<i32> {
    let libseccomp = libseccomp::ScmpVersion::current()?;
    let (major, minor, micro) = (libseccomp.major, libseccomp.minor, libseccomp.micro);
    print(&format!("{me} version {VERSION}\ncommit: {COMMIT}\nspec: {SPEC_VERSION}\nlibseccomp: {major}.{minor}.{micro}\n"))?;
    Ok(0)
}

/// `--help` without a command.
pub(super) fn overview(me: &str) -> Result<i32> {
    let mut text = heading_of_runc(me, "runc - Open Container Initiative runtime");
    let _ = write!(text, "{me} - an OCI container runtime\n\nUsage: {me} [FLAGS] COMMAND [FLAGS] [ARGUMENTS]\n\nCommands:\n");
    for command in COMMANDS {
        let _ = writeln!(text, "  {:12}{}", command.name, command.summary);
    }
    text.push_str("\nFlags:\n");
    flags(&mut text, GLOBAL_FLAGS);
    let _ = writeln!(text, "\n'{me} COMMAND --help' says more about a command.");
    print(&text)?;
    Ok(0)
}

/// `COMMAND --help`.
pub(super) fn of(me: &str, command: &Command) -> Result<i32> {
    let mut text = heading_of_runc(me, &format!("runc {} - {}", command.name, command.summary));
    let _ = write!(text, "{me} {} - {}\n\nUsage: {me} {}\n\n", command.name, command.summary, usage(command));
    wrap(&mut text, command.about, "", 80);
    if !command.flags.is_empty() {
        text.push_str("\nFlags:\n");
        flags(&mut text, command.flags);
    }
    print(&text)?;
    Ok(0)
}

/// How runc's help begins, where we are called by its name: some look for it.
fn heading_of_runc(me: &str, line: &str) -> String {
    if me == "runc" { format!("NAME:\n   {line}\n\n") } else { String::new() }
}

fn usage(command: &Command) -> String {
    let flags = if command.flags.is_empty() { "" } else { " [FLAGS]" };
    let space = if command.operands.is_empty() { "" } else { " " };
    format!("{}{flags}{space}{}", command.name, command.operands)
}

/// `-f, --force`, `    --root DIR`.
fn form(flag: &Flag) -> String {
    let letter = flag.letter.map_or("    ".to_owned(), |l| format!("-{l}, "));
    let value = flag.value.map_or(String::new(), |v| format!(" {v}"));
    format!("{letter}--{}{value}", flag.name)
}

fn flags(text: &mut String, table: &[Flag]) {
    let shown = || table.iter().filter(|f| !f.hidden);
    let width = shown().map(|f| form(f).len()).max().unwrap_or(0);
    for flag in shown() {
        let _ = writeln!(text, "  {:width$}  {}", form(flag), flag.help);
    }
}

fn wrap(text: &mut String, words: &str, indent: &str, width: usize) {
    let mut column = 0;
    for word in words.split(' ') {
        if column > 0 && column + 1 + word.len() > width {
            text.push('\n');
            column = 0;
        }
        let before = if column == 0 { indent } else { " " };
        let _ = write!(text, "{before}{word}");
        column += before.len() + word.len();
    }
    text.push('\n');
}

/// rrun(8).
fn man() -> String {
    let mut page = heading("RRUN");
    let _ = write!(page, ".SH NAME\nrrun \\- an OCI container runtime\n");
    page.push_str(".SH SYNOPSIS\n.B rrun\n[\\fIflags\\fR] \\fIcommand\\fR [\\fIflags\\fR] [\\fIarguments\\fR]\n");
    let _ = write!(page, ".SH DESCRIPTION\n{}\n.PP\nFlags may have one dash or two.\n.SH COMMANDS\n", roff(ABOUT));
    for command in COMMANDS {
        let _ = write!(page, ".TP\n.B {}\n{}. See \\fBrrun-{}\\fR(8).\n", roff(command.name), roff(command.summary), roff(command.name));
    }
    page.push_str(".SH OPTIONS\n");
    man_flags(&mut page, GLOBAL_FLAGS);
    page.push_str(concat!(
        ".SH EXIT STATUS\n0, or 1 for a failure, which one line on standard error tells; 3 for an unknown command. ",
        "\\fBrun\\fR and \\fBexec\\fR in the foreground: the process's own status, or 128 and the number of the signal ",
        "that killed it; 255 where \\fBexec\\fR itself fails.\n",
        ".SH FILES\n.TP\n.I /run/rrun\nStates of root's containers.\n.TP\n.I $XDG_RUNTIME_DIR/rrun\nStates of another user's containers.\n",
        ".SH SEE ALSO\n\\fBrunc\\fR(8), \\fBcrun\\fR(1), \\fBcontainerd\\fR(8), \\fBnamespaces\\fR(7), \\fBcgroups\\fR(7)\n",
    ));
    page
}

/// rrun-COMMAND(8).
fn man_of(command: &Command) -> String {
    let mut page = heading(&format!("RRUN-{}", command.name.to_ascii_uppercase()));
    let _ = write!(page, ".SH NAME\nrrun-{} \\- {}\n", roff(command.name), roff(command.summary));
    let _ = write!(page, ".SH SYNOPSIS\n.B rrun {}\n.SH DESCRIPTION\n{}\n", roff(&usage(command)), roff(command.about));
    if !command.flags.is_empty() {
        page.push_str(".SH OPTIONS\n");
        man_flags(&mut page, command.flags);
    }
    page.push_str(".SH SEE ALSO\n\\fBrrun\\fR(8)\n");
    page
}

fn heading(title: &str) -> String {
    format!(".TH {} 8 \"\" \"rrun {VERSION}\" \"Administration\"\n", roff(title))
}

fn man_flags(page: &mut String, table: &[Flag]) {
    for flag in table.iter().filter(|f| !f.hidden) {
        let letter = flag.letter.map_or(String::new(), |l| format!("\\fB\\-{l}\\fR, "));
        let value = flag.value.map_or(String::new(), |v| format!(" \\fI{}\\fR", roff(v)));
        let _ = write!(page, ".TP\n{letter}\\fB\\-\\-{}\\fR{value}\n{}\n", roff(flag.name), roff(flag.help));
    }
}

/// Text with what roff would read as a request or a hyphen escaped.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}
