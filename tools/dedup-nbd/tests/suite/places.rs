//! Where it serves, and what it tells whoever started it.

use crate::support::{Place, contains};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// Binds a Unix socket at `$1`, and has it inherited as a service manager would.
const ACTIVATE: &str = "
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen(8)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ['LISTEN_FDS'] = '1'
os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
";

#[test]
fn a_socket_has_the_mode_and_the_owner_asked_for() {
    let place = Place::new();
    place.create("v").stop();
    let (volume, socket) = (place.volume("v"), place.path("s"));
    let user = fs::metadata(&volume).unwrap().uid().to_string();
    let options = ["--socket-mode", "0660", "--socket-owner", &user, "--socket", socket.to_str().unwrap()];
    let served = place.serve(&[&[&*volume], &options[..]].concat());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    served.io(&["read 0 4K"]);
    served.stop();
    let served = place.serve(&[&volume]);
    assert_eq!(fs::metadata(place.path("v/nbd.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    served.stop();
}

#[test]
fn several_places_and_uris_are_served_and_printed() {
    let place = Place::new();
    place.create("v").stop();
    let (volume, socket) = (place.volume("v"), place.volume("a socket"));
    let uri = format!("nbd+unix:///the%20disk?socket={}", socket.replace(' ', "%20"));
    let options =
        ["--listen", &uri, "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--description", "things"];
    let mut served = place.serve(&[&[&*volume], &options[..]].concat());
    assert_eq!(served.uri, uri);
    let uris = [served.uri.clone(), served.line(), served.line()];
    contains(&uris[1], &["nbd://127.0.0.1:", "/the%20disk"]);
    contains(&uris[2], &["nbd://[::1]:", "/the%20disk"]);
    for (i, uri) in uris.iter().enumerate() {
        uri.clone_into(&mut served.uri);
        served.io(&[&format!("write -P {} {i}M 1M", i + 1), &format!("read -P {} {i}M 1M", i + 1)]);
    }
    contains(&served.info(&["--list"]), &["the disk", "things"]);
    served.stop();
    let twice = ["--listen", "nbd://localhost/a", "--listen", "nbd://localhost/b"];
    contains(&place.refused(&[&[&*volume], &twice[..]].concat()), &["two exports", "--export"]);
    contains(&place.refused(&[&volume, "--listen", "nbds://localhost"]), &["needs --tls-certificates"]);
}

#[test]
fn several_volumes_are_exports_of_one_process() {
    let place = Place::new();
    for (name, pattern) in [("a", "1"), ("b", "2"), ("c", "3")] {
        let served = place.create(name);
        served.io(&[&format!("write -P {pattern} 0 1M")]);
        served.stop();
    }
    let export = |name: &str, more: &str| format!("name={name},volume={}{more}", place.volume(name));
    let (b, c) = (export("b", ",description=the,, second"), export("c", ",read-only=on"));
    let mut served = place.serve(&[&place.volume("a"), "--export-name", "a", "--export", &b, "--export", &c]);
    let (uri_b, uri_c) = (served.line(), served.line());
    contains(&served.info(&["--list"]), &["\"a\"", "\"b\"", "\"c\"", "the, second", "is_read_only: true"]);
    served.io(&["read -P 1 0 1M"]);
    served.uri = served.uri.replace(":///a?", ":///?");
    served.io(&["read -P 1 0 1M", "write -P 7 1M 1M"]);
    served.uri = uri_b;
    served.io(&["read -P 2 0 1M", "write -P 8 1M 1M", "flush"]);
    served.uri = uri_c;
    served.read(&["read -P 3 0 1M"]);
    assert!(served.try_io(&["write 0 4K"]).is_err());
    for name in ["a", "b", "c"] {
        assert_eq!(place.status(&place.volume(name))["served_by_pid"], served.pid());
    }
    let (status, message) = served.end("-TERM");
    assert_eq!(status.code(), Some(0), "{message}");
    assert_eq!(message.matches("closed: ").count(), 3, "{message}");
    // One that cannot be opened, and the others are closed again.
    fs::create_dir(place.path("broken")).unwrap();
    ["data", "metadata"]
        .iter()
        .for_each(|name| fs::write(place.path("broken").join(name), [7; 8192]).unwrap());
    let broken = export("broken", "");
    contains(&place.refused(&["--export", &b, "--export", &broken]), &["export \"broken\"", "closed: "]);
    contains(&place.refused(&["--export", &b, "--mdbackend", "inram"]), &["are for VOLUME"]);
    let served = place.serve(&["--export", &b]);
    served.io(&["read -P 8 1M 1M"]);
    served.stop();
}

#[test]
fn a_socket_that_was_handed_over_is_served_and_left_where_it_is() {
    let place = Place::new();
    place.create("v").stop();
    let socket = place.volume("activated");
    let program = ["python3", "-c", ACTIVATE, &*socket, env!("CARGO_BIN_EXE_dedup-nbd")];
    let served = place.try_start(&program, &[&place.volume("v")], &[]).unwrap();
    assert_eq!(served.uri, format!("nbd+unix:///?socket={socket}"));
    assert!(!place.path("v/nbd.sock").exists(), "no other socket is made");
    served.io(&["write -P 1 0 4K", "read -P 1 0 4K"]);
    served.stop();
    assert!(place.path("activated").exists());
}

#[test]
fn a_service_manager_hears_when_clients_may_come_and_when_they_have_to_go() {
    let place = Place::new();
    let path = place.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let heard = || {
        let mut message = [0; 512];
        let len = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..len].to_vec()).unwrap()
    };
    let volume = place.volume("v");
    let args = [&*volume, "--create", "--logical-size", "64M"];
    let served = place
        .try_start(&[env!("CARGO_BIN_EXE_dedup-nbd")], &args, &[("NOTIFY_SOCKET", path.to_str().unwrap())])
        .unwrap();
    contains(&heard(), &["READY=1"]);
    served.stop();
    contains(&heard(), &["STOPPING=1"]);
}

#[test]
fn an_idle_server_with_idle_clients_takes_no_cpu() {
    let place = Place::new();
    let served = place.create("v");
    served.io(&["write -P 1 0 1M"]);
    let socket = place.path("v/nbd.sock");
    let clients: Vec<_> =
        (0..20).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", served.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // What the write has left to be done in the background ends first.
    let started = Instant::now();
    let mut quiet_since = (ticks(), Instant::now());
    while quiet_since.1.elapsed() < Duration::from_secs(2) {
        assert!(started.elapsed() < Duration::from_secs(30), "it is never quiet for 2 s");
        std::thread::sleep(Duration::from_millis(100));
        // A tick is 10 ms; one in 2 s is what looking after the volume once a second may add up to.
        if ticks() > quiet_since.0 + 1 {
            quiet_since = (ticks(), Instant::now());
        }
    }
    drop(clients);
    served.stop();
}

#[test]
fn certificates_that_are_not_there_are_named() {
    let place = Place::new();
    place.create("v").stop();
    let message = place.refused(&[&place.volume("v"), "--tls-certificates", &place.volume("pki")]);
    contains(&message, &["TLS", "server-cert.pem", "expected certificates"]);
}
