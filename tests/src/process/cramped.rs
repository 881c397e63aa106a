//! A volume on a file system that is nearly full, which a test has for itself.

use super::server::{Place, Programs, Served};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A small file system of its own, in a mount namespace that ends with the test: nothing is left mounted,
/// whatever happens.
#[derive(Debug)]
struct SmallFileSystem {
    holder: Child,
    directory: String,
}

impl SmallFileSystem {
    /// A tmpfs of so many MiB. The error says why there is none here.
    fn new(place: &Place, mib: u64) -> Result<Self, String> {
        let directory = place.path("small");
        fs::create_dir(&directory).unwrap();
        let directory = directory.display().to_string();
        let user = rustix::process::geteuid();
        let namespaces = if user.is_root() { "-m" } else { "-Urm" };
        let script = format!("mount -t tmpfs -o size={mib}M small {directory} && echo mounted && exec cat");
        let mut holder = Command::new("unshare")
            .args([namespaces, "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        let out = holder.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        if line == "mounted\n" {
            return Ok(Self { holder, directory });
        }
        let output = holder.wait_with_output().unwrap();
        Err(text(&output))
    }

    /// What runs a program where the file system is mounted.
    fn by(&self) -> Vec<String> {
        let user = if rustix::process::geteuid().is_root() { "-m" } else { "-mU" };
        let pid = self.holder.id().to_string();
        ["nsenter", "--preserve-credentials", user, "-t", &pid, "--"].map(str::to_owned).to_vec()
    }

    fn run(&self, script: &str) {
        let by = self.by();
        let output = Command::new(&by[0]).args(&by[1..]).args(["sh", "-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", text(&output));
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A volume of 64 MiB of which one device, or `both` lie on a file system of 40 MiB.
#[derive(Debug)]
pub struct Cramped {
    /// Where the rest of it is.
    pub place: Place,
    small: SmallFileSystem,
    devices: Vec<String>,
}

impl Cramped {
    /// `None`, and a word about it, where no file system can be mounted.
    pub fn new(small_device: &str) -> Option<Self> {
        let place = Place::new(Programs::built(), None).unwrap();
        let small = match SmallFileSystem::new(&place, 40) {
            Ok(small) => small,
            Err(reason) => {
                eprintln!(
                    "NOT RUN, a full file system under the {small_device} device: none can be mounted here: {reason}"
                );
                return None;
            }
        };
        let path = |device: &str| match device == small_device || small_device == "both" {
            true => format!("{}/{device}", small.directory),
            false => place.path(device).display().to_string(),
        };
        let devices = vec!["--data-dev".into(), path("data"), "--metadata-dev".into(), path("metadata")];
        let cramped = Self { place, small, devices };
        let mut format = cramped.program("dedup-tool", &["format"]);
        let output = format.args(["--logical-size", "64M"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        Some(cramped)
    }

    /// Leaves so many MiB of the file system to the volume: what else is there grows or shrinks.
    pub fn leave(&self, mib: u64) {
        let directory = &self.small.directory;
        // At no moment more than that.
        self.small.run(&format!(
            "cd {directory} && touch ballast && more=$(($(stat -f -c '%a * %S' .) - ({mib} << 20))) && \
             if [ $more -gt 0 ]; then head -c $more /dev/zero >>ballast; else truncate -s $(($(stat -c %s ballast) + more)) ballast; fi"
        ));
    }

    /// Puts copies in the place of the devices that lie there, which have space for what was written and for
    /// nothing else.
    pub fn copy(&self) {
        let directory = &self.small.directory;
        for device in ["data", "metadata"] {
            self.small.run(&format!(
                "cd {directory} && if [ -e {device} ]; then cp {device} copy && mv copy {device}; fi"
            ));
        }
    }

    fn program(&self, name: &str, words: &[&str]) -> Command {
        let mut command = self.place.program_by(&self.small.by(), name);
        command.args(words).args(&self.devices);
        command
    }

    /// Starts a server and waits until it serves.
    pub fn serve(&self) -> Served {
        self.place.serve_by(self.program("dedup-nbd", &[])).unwrap()
    }

    /// Runs the checker, data included, which must find nothing.
    pub fn check(&self) {
        let output = self.program("dedup-check", &["--data"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}
