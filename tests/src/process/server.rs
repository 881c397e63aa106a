//! A directory for one volume, and the programs as processes.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// Those in a directory, which must all be there.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        for name in ["dedup-nbd", "dedup-tool", "dedup-check"] {
            let path = directory.join(name);
            ensure!(
                path.is_file(),
                "{} is missing: build the programs first (cargo build --bins)",
                path.display()
            );
        }
        Ok(Self(directory.to_owned()))
    }

    /// Those beside the running program.
    pub fn beside() -> Result<Self> {
        Self::in_directory(&directory_of_this()?)
    }

    /// For tests: those in the directory that the environment's `BIN` names, seen from the top of the tree;
    /// or else those of the profile that the test was built in. Cargo builds only the package under test, so
    /// it is asked for them.
    pub fn built() -> &'static Self {
        static PROGRAMS: OnceLock<Programs> = OnceLock::new();
        PROGRAMS.get_or_init(|| {
            if let Some(named) = std::env::var_os("BIN") {
                let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
                return Self::in_directory(&top.join(named)).unwrap();
            }
            let directory = directory_of_this().unwrap();
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "-p", "dedup-nbd", "-p", "dedup-tool", "-p", "dedup-check"]);
            build.arg("--target-dir").arg(directory.parent().unwrap());
            build.args(["--profile", if directory.ends_with("release") { "release" } else { "test" }]);
            let built = build.output().expect("cargo runs");
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
            Self::in_directory(&directory).unwrap()
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn directory_of_this() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().context("a program lies in a directory")?;
    Ok(if directory.ends_with("deps") { directory.join("..").canonicalize()? } else { directory.to_owned() })
}

/// A directory for a volume, its socket, and everything else of one test.
#[derive(Debug)]
pub struct Place {
    programs: Programs,
    directory: TempDir,
}

impl Place {
    /// A new one, below `parent` or where the system keeps temporary files.
    pub fn new(programs: &Programs, parent: Option<&Path>) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("dedup-");
        let directory = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        Ok(Self { programs: programs.clone(), directory: directory.context("a scratch directory")? })
    }

    /// Leaves it where it is when it is dropped, for those who want to look.
    pub fn keep(&mut self) -> &Path {
        self.directory.disable_cleanup(true);
        self.directory.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The volume.
    pub fn volume(&self) -> PathBuf {
        self.path("v")
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    /// One of the programs, to be run with the runtime directory of this place.
    pub fn program(&self, name: &str) -> Command {
        self.through(&mut Command::new(self.programs.path(name)))
    }

    /// A command that runs one of the programs, such as `nsenter ... PROGRAM`, with the runtime directory of
    /// this place.
    pub fn program_by(&self, by: &[String], name: &str) -> Command {
        let Some((first, rest)) = by.split_first() else { return self.program(name) };
        self.through(Command::new(first).args(rest).arg(self.programs.path(name)))
    }

    fn through(&self, command: &mut Command) -> Command {
        let mut made = Command::new(command.get_program());
        made.args(command.get_args()).env("DEDUP_RUNTIME_DIR", self.path("run")).env_remove("RUST_LOG");
        made.stdin(Stdio::null());
        made
    }

    /// Makes the volume: the smallest log ring, so that a checkpoint is due every 64 commits.
    pub fn format(&self, size: &str) -> Result<()> {
        let mut format = self.program("dedup-tool");
        expect_success(format.arg("format").arg(self.volume()).args(["--logical-size", size]).output()?)
    }

    /// Runs the checker, data included, which must find nothing; returns how many blocks of the log it
    /// replayed.
    pub fn check(&self) -> Result<u64> {
        let mut check = self.program("dedup-check");
        let output = check.args(["--data", "--json"]).arg(self.volume()).output()?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("dedup-check: {}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(output.status.success(), "dedup-check exited with {}: {report:#}", output.status);
        let blocks = &report["summary"]["log_blocks"];
        blocks.as_u64().with_context(|| format!("no number of log blocks in {report:#}"))
    }

    /// Starts the server and waits until it serves.
    pub fn serve(&self) -> Result<Served> {
        let mut command = self.program("dedup-nbd");
        command.arg(self.volume());
        self.serve_by(command)
    }

    /// Starts a server by this command, at [`Self::socket`], and waits until it serves.
    pub fn serve_by(&self, command: Command) -> Result<Served> {
        let mut served = self.spawn(command)?;
        let mut line = String::new();
        let out = served.child.stdout.take().context("standard output was piped")?;
        BufReader::new(out).read_line(&mut line)?;
        if line.starts_with("nbd+unix:") {
            return Ok(served);
        }
        let status = served.child.wait()?;
        bail!("the server did not start ({status}): {}", std::fs::read_to_string(self.path("log"))?)
    }

    /// Starts a server by this command and does not wait. What it logs goes to a file, so that no pipe can
    /// fill up.
    pub fn spawn(&self, mut command: Command) -> Result<Served> {
        let log = File::create(self.path("log"))?;
        command.arg("--socket").arg(self.socket()).stdout(Stdio::piped()).stderr(log);
        Ok(Served { child: command.spawn().context("dedup-nbd runs")?, log: self.path("log") })
    }
}

/// A server process; killed when dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    log: PathBuf,
}

impl Served {
    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `kill -9`; `false` if it had ended before.
    pub fn kill(&mut self) -> Result<bool> {
        let ended = self.child.try_wait()?.is_some();
        self.child.kill()?;
        self.child.wait()?;
        Ok(!ended)
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Waits for its end, which must be with 0.
    pub fn ended(&mut self) -> Result<()> {
        let status = self.wait()?;
        ensure!(status.success(), "the server ended with {status}: {}", self.log());
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn expect_success(output: Output) -> Result<()> {
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}
