//! The programs that a run needs: found, or named with the package that they come in.

use crate::server::Kind;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Programs and the Debian packages that they come in.
const PACKAGES: [(&str, &str); 4] =
    [("fio", "fio"), ("nbdkit", "nbdkit"), ("qemu-nbd", "qemu-utils"), ("qemu-img", "qemu-utils")];
/// How many of them are needed where no peer is measured.
const WITHOUT_PEERS: usize = 1;

/// What was found.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The build that is measured, or the older and the newer one.
    builds: Vec<Build>,
    pub(crate) versions: Vec<Version>,
}

/// Our programs of one build.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) dedup_nbd: PathBuf,
    dedup_tool: PathBuf,
}

/// A program and what it says its version is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) program: String,
    pub(crate) version: String,
}

impl Programs {
    /// Finds the peers, and the build that this program is of.
    pub(crate) fn with_peers() -> Result<Self> {
        let beside = std::env::current_exe().context("cannot find this program's own directory")?;
        Self::find(&PACKAGES, &[beside.parent().unwrap_or(Path::new("."))])
    }

    /// Finds two builds, to be measured against one another.
    pub(crate) fn of_builds(before: &Path, after: &Path) -> Result<Self> {
        Self::find(&PACKAGES[..WITHOUT_PEERS], &[before, after])
    }

    /// Finds everything, or says what is missing.
    fn find(packages: &[(&str, &str)], directories: &[&Path]) -> Result<Self> {
        let mut versions = Vec::new();
        for (program, package) in packages {
            versions.push(version(Path::new(program), &format!("it is in the package {package}"))?);
        }
        let engine = Command::new("fio").arg("--enghelp=nbd").output().context("cannot run fio")?;
        if !String::from_utf8_lossy(&engine.stdout).contains("uri") {
            bail!("fio has no nbd engine: it needs one that was built with libnbd");
        }
        let mut builds = Vec::new();
        for directory in directories {
            let (dedup_nbd, dedup_tool) = (directory.join("dedup-nbd"), directory.join("dedup-tool"));
            for program in [&dedup_nbd, &dedup_tool] {
                versions.push(version(program, "build it, with the same profile: `cargo build --release`")?);
            }
            builds.push(Build { dedup_nbd, dedup_tool });
        }
        Ok(Self { builds, versions })
    }

    /// The build that a server of ours is of.
    pub(crate) fn build(&self, kind: Kind) -> &Build {
        &self.builds[if kind == Kind::After { 1 } else { 0 }]
    }

    /// `mke2fs`, which is not in everybody's path.
    pub(crate) fn mke2fs(&self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let found =
            std::env::split_paths(&path).chain(more).map(|dir| dir.join("mke2fs")).find(|file| file.exists());
        found.context("mke2fs is missing, which the copies of an image need: it is in the package e2fsprogs")
    }
}

impl Build {
    /// What `dedup-tool status` says of a volume that is being served.
    pub(crate) fn status(&self, volume: &Path, runtime_directory: &Path) -> Result<Value> {
        let output = Command::new(&self.dedup_tool)
            .arg("status")
            .arg(volume)
            .arg("--json")
            .env("DEDUP_RUNTIME_DIR", runtime_directory)
            .output()
            .context("cannot run dedup-tool")?;
        if !output.status.success() {
            bail!("dedup-tool status: {}", last_line(&output));
        }
        serde_json::from_slice(&output.stdout).context("dedup-tool status: no JSON")
    }
}

fn version(program: &Path, if_missing: &str) -> Result<Version> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match Command::new(program).arg("--version").stdin(Stdio::null()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.lines().next().unwrap_or_default().to_owned();
            Ok(Version { program: name, version })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{} is missing: {if_missing}", program.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot run {}", program.display())),
    }
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error =
            version(Path::new("/no/such/program"), "it is in the package such").unwrap_err().to_string();
        assert_eq!(error, "/no/such/program is missing: it is in the package such");
    }
}
