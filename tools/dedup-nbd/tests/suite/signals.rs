//! What signals do to a server: SIGHUP has certificates read again, SIGTERM ends it in order, a second one at
//! once.

use crate::support::{Place, contains};
use dedup_nbd_server::test_client::{Client, READ};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than anything takes; a test that would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(20);

fn done(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A server's certificate, and the authority that has signed it: itself.
fn certificates(directory: &Path) {
    fs::create_dir(directory).unwrap();
    let file = |name| directory.join(name);
    let options =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "20"];
    done(
        Command::new("openssl")
            .args(options)
            .args(["-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost"])
            .arg("-keyout")
            .arg(file("server-key.pem"))
            .arg("-out")
            .arg(file("server-cert.pem")),
    );
    fs::copy(file("server-cert.pem"), file("ca-cert.pem")).unwrap();
}

/// Whether a new client that trusts the authority in this directory finds the server to be who it should be.
fn is_trusted(socket: &Path, authority: &Path) -> bool {
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", authority.display());
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},tls-creds=tls0,tls-hostname=localhost",
        socket.display()
    );
    let mut client = Command::new("qemu-img");
    client.args(["info", "--object", &credentials, "--image-opts", &image]);
    client.output().expect("qemu-img is installed").status.success()
}

fn signal(name: &str, pid: u32) {
    done(Command::new("kill").args([name, &pid.to_string()]));
}

/// A file that cannot be used leaves what is in force, and one that cannot be read to its end holds up no
/// other signal.
#[test]
fn a_hangup_has_the_certificates_read_again_and_holds_up_no_end() {
    let place = Place::new();
    place.create("v").stop();
    let [first, second, used] = ["first", "second", "used"].map(|name| place.path(name));
    certificates(&first);
    certificates(&second);
    let put = |from: &Path| {
        ["server-cert.pem", "server-key.pem"].map(|name| fs::copy(from.join(name), used.join(name)).unwrap())
    };
    fs::create_dir(&used).unwrap();
    put(&first);
    let (volume, directory, socket) = (place.volume("v"), place.volume("used"), place.path("v/nbd.sock"));
    let mut served = place.serve(&[&volume, "--tls-certificates", &directory]);
    assert!(is_trusted(&socket, &first) && !is_trusted(&socket, &second));
    put(&second);
    assert!(is_trusted(&socket, &first), "nothing has been read again");
    signal("-HUP", served.pid());
    let begin = Instant::now();
    while !is_trusted(&socket, &second) {
        assert!(begin.elapsed() < PATIENCE, "the certificates were not read again");
    }
    assert!(!is_trusted(&socket, &first));
    fs::write(used.join("server-cert.pem"), "").unwrap();
    signal("-HUP", served.pid());
    sleep(Duration::from_millis(100));
    assert!(is_trusted(&socket, &second), "what was in force stays so");
    fs::remove_file(used.join("server-cert.pem")).unwrap();
    done(Command::new("mkfifo").arg(used.join("server-cert.pem")));
    (0..3).for_each(|_| signal("-HUP", served.pid()));
    sleep(Duration::from_millis(100));
    let begin = Instant::now();
    let (status, message) = served.end("-TERM");
    assert_eq!(status.code(), Some(0), "{message}");
    assert!(begin.elapsed() < PATIENCE / 2, "{message}");
    contains(&message, &["were read again", "stays in force", "closed: "]);
}

/// A client that takes no replies may do so for the drain time. The last line was lost with the process.
#[test]
fn a_second_signal_ends_a_server_that_drains_at_once_and_says_so() {
    let place = Place::new();
    let volume = place.volume("v");
    let mut served = place.serve(&[&volume, "--create", "--logical-size", "64M", "--drain-time", "60"]);
    let mut client = Client::connect(&place.path("v/nbd.sock")).unwrap();
    (0..16).for_each(|cookie| client.request(0, READ, cookie, 0, 1 << 20));
    client.take(16);
    let begin = Instant::now();
    signal("-TERM", served.pid());
    sleep(Duration::from_millis(100));
    let (status, message) = served.end("-INT");
    assert_eq!(status.code(), Some(1), "{message}");
    assert!(begin.elapsed() < PATIENCE, "{message}");
    contains(&message, &["stopping", "a second signal"]);
}
