//! A server process, and the clients that talk to it.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A directory for volumes and sockets of one test.
pub(crate) struct Place(TempDir);

/// A server that serves; killed when dropped.
pub(crate) struct Served {
    child: Child,
    /// As it printed it.
    pub(crate) uri: String,
    stdout: BufReader<ChildStdout>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn volume(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Starts a server and waits until it serves; the error is what it said instead.
    pub(crate) fn try_serve(&self, args: &[&str]) -> Result<Served, String> {
        // SIGXFSZ ignored, so that a file size limit is an error as any other.
        let program = ["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_dedup-nbd")];
        self.try_start(&program, args, &[])
    }

    /// As [`try_serve`](Self::try_serve), by way of another program, and with more in its environment.
    pub(crate) fn try_start(
        &self,
        program: &[&str],
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Served, String> {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .args(args)
            .env("DEDUP_RUNTIME_DIR", self.path("run"))
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program:?}: {error}"));
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let output = child.wait_with_output().unwrap();
            assert_ne!(output.status.code(), Some(0));
            return Err(String::from_utf8(output.stderr).unwrap());
        }
        Ok(Served { child, uri: line.trim_end().to_owned(), stdout })
    }

    pub(crate) fn serve(&self, args: &[&str]) -> Served {
        self.try_serve(args).unwrap_or_else(|message| panic!("{args:?}: {message}"))
    }

    /// Serves a new volume of 64 MiB.
    pub(crate) fn create(&self, name: &str) -> Served {
        self.serve(&[&self.volume(name), "--create", "--logical-size", "64M"])
    }

    /// What the server says that must not start.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let message = self.try_serve(args).err().unwrap_or_else(|| panic!("{args:?} is served"));
        let line = message.lines().last().unwrap_or_default();
        assert!(line.starts_with("dedup-nbd: error: "), "{message}");
        message
    }

    pub(crate) fn tool_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tool());
        command.args(args).env("DEDUP_RUNTIME_DIR", self.path("run"));
        command
    }

    pub(crate) fn tool(&self, args: &[&str]) -> Output {
        self.tool_command(args).output().expect("dedup-tool runs")
    }

    pub(crate) fn status(&self, volume: &str) -> Value {
        let output = self.tool(&["status", volume, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Served {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it printed.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What `nbdinfo` says.
    pub(crate) fn info(&self, options: &[&str]) -> String {
        let output = Command::new("nbdinfo").args(options).arg(&self.uri).output();
        let output = output.expect("nbdinfo is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `qemu-io` commands, which all must succeed.
    pub(crate) fn io(&self, commands: &[&str]) {
        let text = self.try_io(commands).unwrap_or_else(|text| panic!("{commands:?}: {text}"));
        assert!(!text.contains("failed"), "{commands:?}: {text}");
    }

    /// Runs `qemu-io` commands.
    pub(crate) fn try_io(&self, commands: &[&str]) -> Result<String, String> {
        self.qemu_io(&["-f", "raw"], commands)
    }

    /// Runs reads as a client that asks for no more.
    pub(crate) fn read(&self, commands: &[&str]) {
        let text = self.qemu_io(&["-r", "-f", "raw"], commands);
        assert!(text.as_ref().is_ok_and(|text| !text.contains("failed")), "{commands:?}: {text:?}");
    }

    fn qemu_io(&self, options: &[&str], commands: &[&str]) -> Result<String, String> {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let output = Command::new("qemu-io").args(options).args(commands).arg(&self.uri).output();
        let output = output.expect("qemu-io is installed");
        let (told, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let text = format!("{told}{complained}");
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    /// SIGTERM, and the end in good order.
    pub(crate) fn stop(mut self) {
        let (status, message) = self.end("-TERM");
        assert_eq!(status.code(), Some(0), "{message}");
        assert!(message.contains("closed: "), "{message}");
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.end("-KILL");
    }

    /// Makes every further write to a file fail, as a failing disk would.
    pub(crate) fn break_disks(&self) {
        let pid = self.pid().to_string();
        let done = Command::new("prlimit").args(["--fsize=0:0", "--pid", &pid]).status().unwrap();
        assert!(done.success());
    }

    pub(crate) fn end(&mut self, signal: &str) -> (ExitStatus, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let mut message = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        (self.child.wait().unwrap(), message)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn contains(message: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(message.contains(part), "{part:?} is not in: {message}"));
}

/// The other tool: in the directory that the environment's `BIN` names, seen from the top of the tree, or
/// else beside this one. Cargo builds only the tool under test, so it is asked for the other; what it builds
/// for that alone has other features, and takes a minute.
fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        if let Some(named) = std::env::var_os("BIN") {
            let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
            return top.join(named).join("dedup-tool");
        }
        let directory = Path::new(env!("CARGO_BIN_EXE_dedup-nbd")).parent().unwrap();
        let profile = if directory.ends_with("release") { "release" } else { "test" };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "dedup-tool", "--profile", profile, "--target-dir"]);
        build.arg(directory.parent().unwrap());
        let built = build.output().expect("cargo runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        directory.join("dedup-tool")
    })
}
