//! Completion scripts for bash, zsh and fish, made of the table.

use super::parse::{Parsed, utf8};
use super::table::{COMMANDS, Command, Flag, GLOBAL_FLAGS};
use crate::commands::output::print;
use anyhow::{Result, bail};
use std::fmt::Write;

/// `completion SHELL`.
pub(super) fn run(p: &Parsed) -> Result<i32> {
    let shell = utf8("argument", &p.operands[0])?;
    print(&match shell.as_str() {
        "bash" => bash(),
        "zsh" => zsh(),
        "fish" => fish(),
        other => bail!("unknown shell {other:?} (bash, zsh or fish)"),
    })?;
    Ok(0)
}

fn shown(table: &'static [Flag]) -> impl Iterator<Item = &'static Flag> {
    table.iter().filter(|f| !f.hidden)
}

fn takes_id(command: &Command) -> bool {
    command.operands.starts_with("ID") && !matches!(command.name, "create" | "run")
}

/// `--force -f` of all flags, separated by blanks.
fn words(table: &'static [Flag], only_with_value: bool) -> String {
    let mut words = Vec::new();
    for flag in shown(table).filter(|f| !only_with_value || f.value.is_some()) {
        words.push(format!("--{}", flag.name));
        words.extend(flag.letter.map(|l| format!("-{l}")));
    }
    words.join(" ")
}

fn bash() -> String {
    let names: Vec<_> = COMMANDS.iter().map(|c| c.name).collect();
    let mut script = String::from(
        "# bash completion for rrun\n_rrun() {\n    local cur=${COMP_WORDS[COMP_CWORD]} command= ids= flags= valued= operand= i\n",
    );
    let _ = write!(
        script,
        "    for ((i = 1; i < COMP_CWORD; i++)); do\n        case ${{COMP_WORDS[i]}} in\n            {}) ((i++)) ;;\n            -*) ;;\n            *) command=${{COMP_WORDS[i]}}; break ;;\n        esac\n    done\n",
        words(GLOBAL_FLAGS, true).replace(' ', "|")
    );
    let _ = write!(script, "    case $command in\n        '') flags='{}' operand='{}' ;;\n", words(GLOBAL_FLAGS, false), names.join(" "));
    for command in COMMANDS {
        let operand = match command.name {
            "completion" => "bash zsh fish".to_owned(),
            "mounts" => "add remove $(rrun list -q 2>/dev/null)".to_owned(),
            "help" => names.join(" "),
            _ => String::new(),
        };
        let ids = if takes_id(command) { "1" } else { "" };
        let (flags, valued) = (words(command.flags, false), words(command.flags, true));
        let _ = writeln!(script, "        {}) flags='{flags} --help' valued=' {valued} ' operand='{operand}' ids='{ids}' ;;", command.name);
    }
    script.push_str(concat!(
        "    esac\n",
        "    if [[ $cur == -* ]]; then\n        COMPREPLY=($(compgen -W \"$flags\" -- \"$cur\"))\n",
        "    elif [[ $valued == *\" ${COMP_WORDS[COMP_CWORD-1]} \"* ]]; then\n        COMPREPLY=($(compgen -f -- \"$cur\"))\n",
        "    elif [[ -n $ids ]]; then\n        COMPREPLY=($(compgen -W \"$(rrun list -q 2>/dev/null)\" -- \"$cur\"))\n",
        "    elif [[ -n $operand ]]; then\n        COMPREPLY=($(compgen -W \"$operand\" -- \"$cur\"))\n",
        "    else\n        COMPREPLY=($(compgen -f -- \"$cur\"))\n    fi\n}\ncomplete -o filenames -F _rrun rrun\n",
    ));
    script
}

fn zsh() -> String {
    let mut script = String::from(
        "#compdef rrun\n_rrun_ids() { compadd -- ${(f)\"$(rrun list -q 2>/dev/null)\"} }\n_rrun() {\n    local -a commands=(\n",
    );
    let quoted = |text: &str| text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
    for command in COMMANDS {
        let _ = writeln!(script, "        '{}:{}'", command.name, quoted(command.summary));
    }
    script.push_str("    )\n    local state line\n    _arguments -C \\\n");
    let flags = |script: &mut String, table: &'static [Flag]| {
        for flag in shown(table) {
            let value = flag.value.map_or(String::new(), |v| format!(":{}:_files", quoted(v)));
            for name in [Some(format!("--{}", flag.name)), flag.letter.map(|l| format!("-{l}"))].into_iter().flatten() {
                let _ = writeln!(script, "        '{name}[{}]{value}' \\", quoted(flag.help));
            }
        }
    };
    flags(&mut script, GLOBAL_FLAGS);
    script.push_str("        '1: :->command' '*:: :->rest'\n    case $state in\n    command) _describe command commands ;;\n    rest)\n        case $line[1] in\n");
    for command in COMMANDS {
        let _ = write!(script, "        {})\n        _arguments \\\n", command.name);
        flags(&mut script, command.flags);
        let operand = match command.name {
            "completion" => "'1:shell:(bash zsh fish)'",
            "help" => "'1:command:'",
            "mounts" => "'1:action:(add remove)' '2:container:_rrun_ids' '3:file:_files'",
            _ if takes_id(command) => "'1:container:_rrun_ids' '*::argument:_default'",
            _ => "'*:file:_files'",
        };
        let _ = writeln!(script, "        {operand} ;;");
    }
    script.push_str("        esac ;;\n    esac\n}\n_rrun \"$@\"\n");
    script
}

fn fish() -> String {
    let mut script = String::from("# fish completion for rrun\n");
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let flags = |script: &mut String, condition: &str, table: &'static [Flag]| {
        for flag in shown(table) {
            let letter = flag.letter.map_or(String::new(), |l| format!(" -s {l}"));
            let value = if flag.value.is_some() { " -r" } else { "" };
            let _ = writeln!(script, "complete -c rrun -n {condition}{letter} -l {}{value} -d {}", flag.name, quoted(flag.help));
        }
    };
    flags(&mut script, "__fish_use_subcommand", GLOBAL_FLAGS);
    for command in COMMANDS {
        let _ = writeln!(script, "complete -c rrun -n __fish_use_subcommand -f -a {} -d {}", command.name, quoted(command.summary));
        let condition = format!("'__fish_seen_subcommand_from {}'", command.name);
        flags(&mut script, &condition, command.flags);
        let operand = match command.name {
            "completion" => "'bash zsh fish'",
            "mounts" => "'add remove (rrun list -q 2>/dev/null)'",
            _ if takes_id(command) => "'(rrun list -q 2>/dev/null)'",
            _ => continue,
        };
        let _ = writeln!(script, "complete -c rrun -n {condition} -f -a {operand}");
    }
    script
}
