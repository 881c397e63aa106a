//! Which directory the sockets are in, and whether it is safe.
//!
//! Invariant: a directory handed out is a real one (no link), owned by this user, or for root by the user
//! whose server is looked for, and not writable by anyone else.

use super::{ControlError, io_error};
use dedup_device::FileDevice;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Names the one directory to use.
const OVERRIDE: &str = "DEDUP_RUNTIME_DIR";
/// Where root makes it, or has it made for a service's user.
const SYSTEM: &str = "/run/dedup";
/// Write permission of the group and of others.
const OTHERS_WRITE: u32 = 0o022;

/// The user that this process acts as.
pub(super) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The directories that this process may use, best first.
pub(super) fn candidates() -> Vec<PathBuf> {
    candidates_of(|name| std::env::var_os(name), user())
}

/// Where sockets go: the first directory that is safe, made with mode 0700 if it is missing; the last one's
/// error if none is.
pub fn create() -> Result<PathBuf, ControlError> {
    create_first(candidates())
}

/// The process that has a device open.
#[derive(Debug)]
struct Server {
    uid: u32,
    /// `NAME=VALUE` each; empty if this user may not see it.
    environment: Vec<OsString>,
}

impl Server {
    fn of(data: &Path) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{}", FileDevice::holder(data)?));
        let uid = fs::metadata(&process).ok()?.uid();
        // As it was when the process was started, which is what a server goes by.
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let variables = environment.split(|byte| *byte == 0).map(|text| OsStr::from_bytes(text).to_owned());
        Some(Self { uid, environment: variables.collect() })
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        let value = |variable: &OsString| {
            let value = variable.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(OsStr::from_bytes(value).to_owned())
        };
        self.environment.iter().find_map(value)
    }

    /// Where it may have its socket, as far as that can be told: which is where a service manager says
    /// (`DEDUP_RUNTIME_DIR` in the unit).
    fn candidates(&self) -> Vec<PathBuf> {
        let mut paths = candidates_of(|name| self.variable(name), self.uid);
        if self.environment.is_empty() {
            paths.push(PathBuf::from(format!("/run/user/{}/dedup", self.uid)));
        }
        // What is relative is so to its directory and not to this one.
        paths.retain(|path| path.is_absolute());
        paths
    }
}

/// The directories in which the server of the device at `data` may have its socket, each with the user that
/// it must belong to. `None`: whoever it is, since only root can have made it or named it.
pub(super) fn to_look_in(data: &Path) -> Vec<(PathBuf, Option<u32>)> {
    to_look_in_of(|name| std::env::var_os(name), user(), Server::of(data))
}

fn to_look_in_of(
    env: impl Fn(&str) -> Option<OsString>,
    uid: u32,
    server: Option<Server>,
) -> Vec<(PathBuf, Option<u32>)> {
    let own = candidates_of(&env, uid);
    let is_named = own.len() == 1;
    let by_root = |path: &Path| uid == 0 && (is_named || path == Path::new(SYSTEM));
    let own = own.into_iter().map(|path| if by_root(&path) { (path, None) } else { (path, Some(uid)) });
    let mut found: Vec<_> = own.collect();
    // Its answers would be those of another user to all but root.
    if let Some(server) = server.filter(|server| !is_named && (uid == 0 || server.uid == uid)) {
        for path in server.candidates() {
            if !found.iter().any(|(known, _)| *known == path) {
                found.push((path, Some(server.uid)));
            }
        }
    }
    found
}

/// The owner of `path`, if it is a directory that only that user can write to, and that is `uid` if anybody.
pub(super) fn check(path: &Path, uid: Option<u32>) -> Result<u32, ControlError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let owner = uid.unwrap_or(metadata.uid());
    let error = |found| Err(ControlError::Directory { path: path.to_owned(), uid: owner, found });
    if !metadata.is_dir() {
        return error("something else".to_owned());
    }
    if metadata.uid() != owner {
        return error(format!("one of user {}", metadata.uid()));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return error(format!("mode {:o}", metadata.mode() & 0o7777));
    }
    Ok(owner)
}

fn candidates_of(env: impl Fn(&str) -> Option<OsString>, uid: u32) -> Vec<PathBuf> {
    let env = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = env(OVERRIDE) {
        return vec![only];
    }
    // The XDG specification: a path that is not absolute is to be ignored.
    let xdg = env("XDG_RUNTIME_DIR").filter(|dir| dir.is_absolute()).map(|dir| dir.join("dedup"));
    [Some(PathBuf::from(SYSTEM)), xdg, Some(last_of(uid))].into_iter().flatten().collect()
}

/// What every user can make.
fn last_of(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/dedup-{uid}"))
}

fn create_first(candidates: Vec<PathBuf>) -> Result<PathBuf, ControlError> {
    let mut failed = None;
    for path in candidates {
        match create_one(&path) {
            Ok(()) => return Ok(path),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.expect("there is always a candidate"))
}

fn create_one(path: &Path) -> Result<(), ControlError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("create directory", path)(error))
        }
        _ => check(path, Some(user())).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn of(vars: &[(&str, &str)]) -> Vec<PathBuf> {
        candidates_of(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()), 1000)
    }

    #[test]
    fn the_override_stands_alone_and_else_the_order_is_run_then_xdg_then_tmp() {
        let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
        let xdg = ("XDG_RUNTIME_DIR", "/run/user/1000");
        assert_eq!(of(&[(OVERRIDE, "/x"), xdg]), paths(&["/x"]));
        assert_eq!(
            of(&[(OVERRIDE, ""), xdg]),
            paths(&["/run/dedup", "/run/user/1000/dedup", "/tmp/dedup-1000"])
        );
        assert_eq!(of(&[("XDG_RUNTIME_DIR", "relative")]), paths(&["/run/dedup", "/tmp/dedup-1000"]));
    }

    /// Root could not ask the server of another user for its status.
    #[test]
    fn root_looks_where_the_user_who_runs_the_server_may_have_its_socket_and_others_only_at_home() {
        let env = |vars: &'static [(&str, &str)]| {
            move |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
        };
        let at = |path: &str, owner| (PathBuf::from(path), owner);
        let server = |uid, variables: &[&str]| {
            Some(Server { uid, environment: variables.iter().map(OsString::from).collect() })
        };
        let own = [at("/run/dedup", None), at("/tmp/dedup-0", Some(0))];
        assert_eq!(to_look_in_of(env(&[]), 0, None), own);
        assert_eq!(
            to_look_in_of(env(&[]), 0, server(0, &[])),
            [&own[..], &[at("/run/user/0/dedup", Some(0))]].concat()
        );
        let others = [at("/tmp/dedup-7", Some(7)), at("/run/user/7/dedup", Some(7))];
        assert_eq!(to_look_in_of(env(&[]), 0, server(7, &[])), [own.clone(), others].concat());
        assert_eq!(to_look_in_of(env(&[(OVERRIDE, "/x")]), 0, server(7, &[])), [at("/x", None)]);
        let mine = [at("/run/dedup", Some(5)), at("/tmp/dedup-5", Some(5))];
        assert_eq!(to_look_in_of(env(&[]), 5, server(7, &["DEDUP_RUNTIME_DIR=/x"])), mine);
        // The unit names a directory of its own, which nobody else's environment does.
        let unit = ["LANG=C", "DEDUP_RUNTIME_DIR=/run/dedup-nbd"];
        for uid in [0, 5] {
            let found = to_look_in_of(env(&[]), uid, server(5, &unit));
            assert_eq!(found[2..], [at("/run/dedup-nbd", Some(5))]);
        }
        let xdg = to_look_in_of(env(&[]), 0, server(7, &["XDG_RUNTIME_DIR=/a", "DEDUP_RUNTIME_DIR="]));
        assert_eq!(xdg[2..], [at("/a/dedup", Some(7)), at("/tmp/dedup-7", Some(7))]);
        assert_eq!(to_look_in_of(env(&[]), 0, server(7, &["DEDUP_RUNTIME_DIR=here"])), own);
    }

    #[test]
    fn a_missing_directory_is_made_for_the_user_alone_and_an_impossible_one_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("dedup");
        let made =
            create_first(vec!["/proc/self/dedup".into(), wanted.clone(), dir.path().join("other")]).unwrap();
        assert_eq!(made, wanted);
        assert_eq!(fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
        assert_eq!(create_first(vec![wanted.clone()]).unwrap(), wanted, "an existing one is used again");
        assert!(!dir.path().join("other").exists());
    }

    #[test]
    fn a_directory_that_others_could_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let found = |path: &Path, uid| match check(path, Some(uid)).unwrap_err() {
            ControlError::Directory { found, .. } => found,
            other => panic!("{other}"),
        };
        assert_eq!(found(dir.path(), user() + 1), format!("one of user {}", user()));
        let link = dir.path().join("link");
        symlink(".", &link).unwrap();
        assert_eq!(found(&link, user()), "something else");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(found(dir.path(), user()), "mode 777");
    }
}
