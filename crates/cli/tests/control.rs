//! The control socket from both ends: questions and answers, dead servers, bad clients, the end.

use dedup_cli::control::{ControlClient, ControlError, ControlServer, DeviceId, GcAction, Request, Response};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{fs, thread};
use tempfile::TempDir;

/// The device that the server is of; any file will do.
fn device() -> DeviceId {
    DeviceId::of("/proc/self/exe".as_ref()).expect("this test")
}

fn handler(request: Request) -> Response {
    match request {
        Request::Status => Response::Ok(json!({"used": 5})),
        Request::Gc { action: GcAction::Stop } => Response::Error("nothing runs".to_owned()),
        Request::Gc { action: GcAction::Start } => panic!("on purpose"),
        Request::Gc { action: GcAction::Estimate } => Response::Ok("x".repeat(100_000).into()),
    }
}

fn start() -> (TempDir, ControlServer) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = ControlServer::start_in(dir.path(), device(), handler).expect("a server");
    (dir, server)
}

fn ask(server: &ControlServer, request: Request) -> Result<serde_json::Value, ControlError> {
    ControlClient::connect_to(server.socket(), &device())?.request(&request)
}

/// Sends a raw line after the hello and gives the raw answer.
fn raw(server: &ControlServer, sent: &[u8]) -> String {
    let mut stream = UnixStream::connect(server.socket()).expect("a connection");
    let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
    assert!(lines.next().expect("a hello").expect("readable").contains("\"protocol\":2"));
    stream.write_all(sent).expect("sent");
    lines.next().expect("an answer").expect("readable")
}

#[test]
fn answers_and_refusals_reach_the_client_with_the_servers_process() {
    let (_dir, server) = start();
    assert_eq!(ControlClient::connect_to(server.socket(), &device()).unwrap().pid(), std::process::id());
    assert_eq!(ask(&server, Request::Status).unwrap(), json!({"used": 5}));
    let error = ask(&server, Request::Gc { action: GcAction::Stop }).unwrap_err();
    assert_eq!(error.to_string(), "nothing runs");
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let (_dir, server) = start();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert!(ask(&server, Request::Status).is_ok()));
        }
    });
}

/// Clients were answered one after the other: each that said nothing held up the next, and the end of the
/// server, for five seconds.
#[test]
fn clients_that_say_nothing_hold_up_neither_others_nor_the_end() {
    let (_dir, server) = start();
    let begin = Instant::now();
    // More than are let in at once.
    let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(server.socket()).unwrap()).collect();
    for _ in 0..3 {
        assert!(ask(&server, Request::Status).is_ok());
    }
    drop(server);
    assert!(begin.elapsed() < Duration::from_secs(4), "it took {:?}", begin.elapsed());
    drop(silent);
}

#[test]
fn an_answer_that_takes_long_holds_up_no_other_and_is_waited_for_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (ask_now, asked) = mpsc::channel();
    let (let_go, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let handler = move |request| {
        if let Request::Gc { .. } = request {
            ask_now.send(()).unwrap();
            gate.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
        }
        handler(request)
    };
    let server = ControlServer::start_in(dir.path(), device(), handler).unwrap();
    let client = ControlClient::connect_to(server.socket(), &device()).unwrap();
    let slow = thread::spawn(move || client.request(&Request::Gc { action: GcAction::Stop }).unwrap_err());
    asked.recv().unwrap();
    assert!(ask(&server, Request::Status).is_ok());
    let socket = server.socket().to_owned();
    let end = thread::spawn(move || drop(server));
    // It has begun to end.
    while UnixStream::connect(&socket).is_ok() {
        thread::yield_now();
    }
    let_go.send(()).unwrap();
    assert_eq!(slow.join().unwrap().to_string(), "nothing runs");
    end.join().unwrap();
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_and_the_server_goes_on() {
    let (_dir, server) = start();
    assert!(raw(&server, b"rubbish\n").starts_with("{\"error\":\"control protocol: expected a request"));
    assert!(raw(&server, b"{\"command\":\"format\"}\n").contains("unknown variant `format`"));
    assert!(raw(&server, b"{\"command\":\"gc\",\"action\":\"start\",\"hurry\":1}\n").contains("hurry"));
    drop(UnixStream::connect(server.socket()).unwrap());
    assert!(ask(&server, Request::Status).is_ok());
}

#[test]
fn a_handler_that_panics_or_says_too_much_gives_an_error_and_the_server_goes_on() {
    let (_dir, server) = start();
    let error = ask(&server, Request::Gc { action: GcAction::Start }).unwrap_err();
    assert!(error.to_string().starts_with("internal error"), "{error}");
    let error = ask(&server, Request::Gc { action: GcAction::Estimate }).unwrap_err();
    assert!(error.to_string().starts_with("the answer is too long"), "{error}");
    assert!(ask(&server, Request::Status).is_ok());
}

#[test]
fn a_second_server_is_refused_and_names_the_first() {
    let (dir, _server) = start();
    let error = ControlServer::start_in(dir.path(), device(), handler).unwrap_err();
    assert!(
        matches!(&error, ControlError::Running { device: of, pid } if *of == device() && *pid == std::process::id()),
        "{error}"
    );
}

#[test]
fn the_socket_of_a_dead_server_is_replaced_and_another_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(format!("{}.sock", device()));
    drop(UnixListener::bind(&socket).unwrap());
    let server = ControlServer::start_in(dir.path(), device(), handler).unwrap();
    assert!(ask(&server, Request::Status).is_ok());
    drop(server);
    fs::write(&socket, "precious").unwrap();
    assert!(ControlServer::start_in(dir.path(), device(), handler).is_err());
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn the_socket_is_the_owners_alone_and_gone_after_the_drop() {
    let (dir, server) = start();
    assert_eq!(fs::metadata(server.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    drop(server);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_server_ends_even_if_its_socket_was_removed() {
    let (_dir, server) = start();
    fs::remove_file(server.socket()).unwrap();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        drop(server);
        done.send(()).unwrap();
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(()));
}

#[test]
fn a_server_of_another_device_behind_the_socket_is_noticed() {
    let (_dir, server) = start();
    let error =
        ControlClient::connect_to(server.socket(), &DeviceId::of("/dev/null".as_ref()).unwrap()).unwrap_err();
    assert!(
        matches!(error, ControlError::Protocol { expected: "the server of the device asked for", .. }),
        "{error}"
    );
}

#[test]
fn a_server_of_another_release_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, "{}", json!({"protocol": 3, "device": device(), "pid": 1})).unwrap();
    });
    let error = ControlClient::connect_to(&socket, &device()).unwrap_err();
    assert!(error.to_string().contains("expected version 2, found version 3"), "{error}");
    server.join().unwrap();
}

#[test]
fn a_volume_that_nobody_serves_is_said_to_be_so() {
    let error = ControlClient::connect("/proc/self/exe".as_ref()).unwrap_err();
    assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
    assert!(error.to_string().contains("looked in /"), "{error}");
}
