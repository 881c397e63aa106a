//! Parsing a tool's command line, with two hidden commands that every tool has.
//!
//! - `completions SHELL` prints a completion script for bash, zsh, fish, elvish or powershell;
//! - `man DIR` writes the tool's manual pages, one a subcommand, into a directory.
//!
//! Both are made from the arguments' own declarations, so they cannot say anything else than `--help` does.
//! They are commands for packagers and stay out of the help. A volume directory of such a name is `./man`.

use clap::{Arg, ArgMatches, Command, Parser, value_parser};
use clap_complete::Shell;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::{exit, output};

/// Parses the process's arguments. `Err` is the code to exit with, everything having been printed: `usage`
/// after wrong arguments, 0 after `--help` and `--version` and a hidden command, 1 if that failed.
pub fn parse<T: Parser>(usage: u8) -> Result<T, ExitCode> {
    parse_from(std::env::args_os(), usage)
}

/// [`parse`] of given arguments, the first being the tool's name.
pub fn parse_from<T: Parser>(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    usage: u8,
) -> Result<T, ExitCode> {
    let told = |error: clap::Error| {
        // Nothing is left to do if the terminal is gone.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { usage } else { exit::SUCCESS })
    };
    let mut command = with_hidden_commands(T::command());
    let mut matches = command.try_get_matches_from_mut(args).map_err(told)?;
    match hidden_command::<T>(&matches) {
        None => T::from_arg_matches_mut(&mut matches).map_err(|error| told(error.format(&mut command))),
        Some(Ok(())) => Err(ExitCode::from(exit::SUCCESS)),
        Some(Err(error)) => {
            exit::report(command.get_name(), &error);
            Err(ExitCode::from(exit::FAILURE))
        }
    }
}

fn with_hidden_commands(command: Command) -> Command {
    let command = if command.has_subcommands() {
        command
    } else {
        // A tool with positional arguments only: they must not be asked for next to a hidden command.
        command.args_conflicts_with_subcommands(true).disable_help_subcommand(true)
    };
    let shell = Arg::new("shell").value_name("SHELL").required(true).value_parser(value_parser!(Shell));
    let dir = Arg::new("dir").value_name("DIR").required(true).value_parser(value_parser!(PathBuf));
    command
        .subcommand(
            Command::new("completions").hide(true).about("Print a shell completion script").arg(shell),
        )
        .subcommand(Command::new("man").hide(true).about("Write the manual pages into a directory").arg(dir))
}

/// Runs the hidden command that was given, if one was.
fn hidden_command<T: Parser>(matches: &ArgMatches) -> Option<io::Result<()>> {
    match matches.subcommand()? {
        ("completions", matches) => {
            let script = completions(T::command(), *matches.get_one("shell")?);
            Some(output::tell(|out| out.write_all(&script)))
        }
        ("man", matches) => {
            let dir: &PathBuf = matches.get_one("dir")?;
            let made =
                std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(T::command(), dir));
            Some(made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()))))
        }
        _ => None,
    }
}

fn completions(mut command: Command, shell: Shell) -> Vec<u8> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VolumeArgs;
    use clap::{CommandFactory, ValueEnum};

    /// A tool without subcommands.
    #[derive(Parser, Debug)]
    #[command(name = "flat", version)]
    struct Flat {
        #[command(flatten)]
        volume: VolumeArgs,
    }

    /// A tool with them.
    #[derive(Parser, Debug)]
    #[command(name = "deep")]
    enum Deep {
        /// Do it
        Run,
    }

    fn code(result: Result<impl Sized, ExitCode>) -> String {
        format!("{:?}", result.err().expect("an exit code"))
    }

    fn expected(code: u8) -> String {
        format!("{:?}", ExitCode::from(code))
    }

    #[test]
    fn wrong_arguments_give_the_usage_code_of_the_tool() {
        assert_eq!(code(parse_from::<Flat>(["flat"], exit::fsck::USAGE)), expected(16));
        assert_eq!(code(parse_from::<Flat>(["flat", "v", "--no-such"], exit::USAGE)), expected(2));
        assert_eq!(code(parse_from::<Deep>(["deep", "walk"], exit::fsck::USAGE)), expected(16));
        assert_eq!(
            code(parse_from::<Flat>(["flat", "completions", "cobol"], exit::fsck::USAGE)),
            expected(16)
        );
    }

    #[test]
    fn asking_for_help_or_the_version_is_a_success() {
        for option in ["--help", "--version"] {
            assert_eq!(code(parse_from::<Flat>(["flat", option], exit::fsck::USAGE)), expected(0));
        }
    }

    #[test]
    fn ordinary_arguments_pass_through() {
        let flat = parse_from::<Flat>(["flat", "/srv/none/v"], exit::USAGE).unwrap();
        assert_eq!(flat.volume.resolve().unwrap().name, "v");
        assert!(matches!(parse_from(["deep", "run"], exit::USAGE), Ok(Deep::Run)));
        assert!(parse_from::<Flat>(["flat", "./man"], exit::USAGE).is_ok());
    }

    #[test]
    fn hidden_commands_stay_out_of_the_help() {
        for command in [Flat::command(), Deep::command()] {
            let help = with_hidden_commands(command).render_long_help().to_string();
            assert!(!help.contains("completions") && !help.contains("man "), "{help}");
        }
        let help = with_hidden_commands(Flat::command()).render_help().to_string();
        assert!(help.contains("Usage: flat [OPTIONS] [VOLUME]"), "{help}");
    }

    #[test]
    fn completions_of_every_shell_know_the_options_and_no_hidden_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(Flat::command(), *shell)).unwrap();
            assert!(
                script.contains("metadata-dev") && !script.contains("__completions"),
                "{shell}: {script}"
            );
        }
        assert_eq!(code(parse_from::<Flat>(["flat", "completions", "bash"], exit::USAGE)), expected(0));
    }

    #[test]
    fn manual_pages_are_written_for_the_tool_and_each_subcommand() {
        let dir = tempfile::tempdir().unwrap();
        let pages = dir.path().join("man1");
        let path = pages.to_str().unwrap();
        assert_eq!(code(parse_from::<Deep>(["deep", "man", path], exit::USAGE)), expected(0));
        assert_eq!(code(parse_from::<Flat>(["flat", "man", path], exit::USAGE)), expected(0));
        for page in ["deep.1", "deep-run.1", "flat.1"] {
            let text = std::fs::read_to_string(pages.join(page)).unwrap();
            assert!(text.contains(".TH") && !text.contains("completions"), "{page}: {text}");
        }
    }

    #[test]
    fn a_manual_directory_that_cannot_be_made_is_a_failure() {
        assert_eq!(
            code(parse_from::<Flat>(["flat", "man", "/dev/null/man"], exit::fsck::USAGE)),
            expected(1)
        );
    }
}
