//! Encryption: who is let in, and that nothing said in the clear counts afterwards.

use crate::fixture::*;
use crate::hostile::{panics, settles};
use crate::memory::Memory;
use crate::pki::Pki;
use dedup_nbd_server::{ClientCertificates, TlsConfig, TlsError};
use rustls::HandshakeKind;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const POLICY: u32 = 2;
const INVALID: u32 = 3;
const TLS_REQUIRED: u32 = 5;
const EINVAL: u32 = 22;

fn serve_tls(pki: &Pki, clients: ClientCertificates, required: bool, size: usize) -> Fixture {
    serve_with(|builder| {
        builder.export("disk", "a disk", Arc::new(Memory::new(size))).tls(pki.server(clients), required)
    })
}

fn required(pki: &Pki) -> Fixture {
    serve_tls(pki, ClientCertificates::Ignored, true, 1 << 16)
}

/// Whether a client gets as far as reading a byte of the export.
fn is_let_in(mut client: Client<TlsStream>) -> bool {
    let mut session = option(7, &go_data(b"disk", &[]));
    session.extend(request(0, READ, 1, 0, 1));
    if client.stream.write_all(&session).is_err() {
        return false;
    }
    let mut replies = Vec::new();
    let go = 20 + 12 + 20;
    let read = Read::take(&mut client.stream, go + 16 + 1).read_to_end(&mut replies);
    read.is_ok() && replies.len() as u64 == go + 16 + 1
}

#[test]
fn what_is_written_encrypted_is_read_back_encrypted() {
    let pki = Pki::new();
    let fixture = serve_tls(&pki, ClientCertificates::Ignored, false, 8 << 20);
    let mut client = fixture.encrypted(&pki.client(None));
    client.go(b"disk", &[]);
    for (offset, len) in [(0, 1), (777, 5000), (0, 8 << 20)] {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
        client.write(FUA, 42, offset, &data);
        assert_eq!(client.simple_reply(), (42, 0));
        assert!(client.read(offset, len) == data);
    }
    // And it is the same export that others have in the clear.
    assert_eq!(fixture.simple().read(0, 2), [1, 2]);
}

#[test]
fn hundreds_of_encrypted_requests_in_flight_are_each_answered_and_new_keys_do_not_disturb_them() {
    const REQUESTS: u64 = 400;
    let pki = Pki::new();
    let fixture = serve_tls(&pki, ClientCertificates::Ignored, true, REQUESTS as usize * 100);
    let mut client = fixture.encrypted(&pki.client(None));
    client.go(b"disk", &[]);
    for round in 0..3u64 {
        let mut bytes = Vec::new();
        for i in 0..REQUESTS {
            bytes.extend(request(0, WRITE, i, i * 100, 100));
            bytes.extend([(i + round) as u8; 100]);
        }
        client.send(&bytes);
        let mut cookies: Vec<_> = (0..REQUESTS).map(|_| client.simple_reply()).collect();
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq((0..REQUESTS).map(|i| (i, 0))));
        client.stream.conn.refresh_traffic_keys().unwrap();
        assert_eq!(client.read(100, 100), [1 + round as u8; 100]);
    }
}

/// A session that is resumed shows no certificate, so one that has expired since would have been let in.
#[test]
fn every_session_begins_with_a_certificate() {
    let pki = Pki::new();
    let fixture = serve_tls(&pki, ClientCertificates::Required, true, 4096);
    let config = pki.client(Some(&pki));
    for _ in 0..3 {
        let mut client = fixture.encrypted(&config);
        client.go(b"disk", &[]);
        assert_eq!(client.read(0, 1), [0]);
        assert_eq!(client.stream.conn.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn a_server_that_wants_tls_tells_nothing_in_the_clear() {
    let pki = Pki::new();
    let fixture = required(&pki);
    let mut client = fixture.greeted();
    let context = context_data(b"disk", &["base:allocation"]);
    let go = go_data(b"disk", &[]);
    let options: [(u32, &[u8]); 8] =
        [(3, b""), (6, &go), (7, &go), (8, b""), (9, &context), (10, &context), (11, b""), (99, b"x")];
    for (number, data) in options {
        client.send_option(number, data);
        assert_eq!(client.option_error(number), TLS_REQUIRED, "option {number}");
    }
    let mut client = client.start_tls(&pki.client(None));
    client.go(b"disk", &[]);
    assert_eq!(client.read(0, 1), [0]);
    let mut old = fixture.greeted();
    old.send_option(1, b"disk");
    old.expect_end();
    let mut leaves = fixture.greeted();
    leaves.send_option(2, b"");
    assert_eq!(leaves.option_reply(2), (1, vec![]));
}

#[test]
fn what_was_agreed_on_in_the_clear_is_forgotten() {
    let pki = Pki::new();
    let fixture = serve_tls(&pki, ClientCertificates::Ignored, false, 4096);
    for headers in [8, 11] {
        let mut client = fixture.greeted();
        client.send_option(headers, b"");
        client.option_reply(headers);
        assert_eq!(client.select(b"disk", &["base:allocation"]).len(), 1);
        let mut client = client.start_tls(&pki.client(None));
        client.send_option(10, &context_data(b"disk", &[]));
        assert_eq!(client.option_error(10), INVALID, "structured replies are to be asked for again");
        client.go(b"disk", &[]);
        client.request(0, READ, 1, 0, 4);
        assert_eq!(client.simple_reply(), (1, 0));
        client.take(4);
        client.request(0, BLOCK_STATUS, 2, 0, 4);
        assert_eq!(client.simple_reply(), (2, EINVAL));
    }
    // Contexts are forgotten even if structured replies are agreed on anew.
    let mut client = fixture.greeted();
    client.send_option(8, b"");
    client.option_reply(8);
    client.select(b"disk", &["base:allocation"]);
    let mut client = client.start_tls(&pki.client(None));
    client.send_option(8, b"");
    client.option_reply(8);
    client.go(b"disk", &[]);
    client.request(0, BLOCK_STATUS, 2, 0, 4);
    assert_eq!(client.error_chunk(2), EINVAL);
}

/// Other servers have taken what somebody in between had slipped in behind STARTTLS for the client's own
/// words.
#[test]
fn bytes_slipped_in_behind_starttls_are_not_taken_for_options() {
    let pki = Pki::new();
    let fixture = serve_tls(&pki, ClientCertificates::Ignored, false, 4096);
    let mut client = fixture.greeted();
    client.send(&[option(5, b""), option(8, b""), option(3, b"")].concat());
    assert_eq!(client.option_reply(5), (1, vec![]));
    let mut rest = Vec::new();
    // The end may come as a reset, since bytes are left unread.
    let _ = client.stream.read_to_end(&mut rest);
    const ALERT: u8 = 21;
    assert!(rest.first().is_none_or(|kind| *kind == ALERT), "{rest:?}");
    assert!(!rest.windows(8).any(|bytes| bytes == 0x0003_e889_0455_65a9u64.to_be_bytes()));
}

#[test]
fn starttls_is_refused_with_data_a_second_time_and_where_there_is_no_tls() {
    let pki = Pki::new();
    let fixture = serve_tls(&pki, ClientCertificates::Ignored, false, 4096);
    let mut client = fixture.greeted();
    client.send_option(5, b"x");
    assert_eq!(client.option_error(5), INVALID);
    let mut client = client.start_tls(&pki.client(None));
    client.send_option(5, b"");
    assert_eq!(client.option_error(5), INVALID);
    client.go(b"disk", &[]);
    // Without the fixed handshake there is no TLS.
    let mut old = fixture.connect();
    old.greet(2);
    old.send_option(5, b"");
    assert_eq!(old.option_error(5), POLICY);
    let plain = serve(Memory::new(4096));
    let mut client = plain.greeted();
    client.send_option(5, b"");
    assert_eq!(client.option_error(5), POLICY);
    client.go(b"disk", &[]);
}

#[test]
fn clients_show_certificates_as_the_server_wants_them() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let (without, with, foreign) = (pki.client(None), pki.client(Some(&pki)), pki.client(Some(&stranger)));
    for (clients, expected) in [
        (ClientCertificates::Ignored, [true, true, true]),
        (ClientCertificates::Optional, [true, true, false]),
        (ClientCertificates::Required, [false, true, false]),
    ] {
        let fixture = serve_tls(&pki, clients.clone(), true, 4096);
        let found = [&without, &with, &foreign].map(|config| is_let_in(fixture.encrypted(config)));
        assert_eq!(found, expected, "{clients:?}");
    }
    pki.revoke_client();
    let fixture = serve_tls(&pki, ClientCertificates::Required, true, 4096);
    assert!(!is_let_in(fixture.encrypted(&with)), "revoked");
    let fixture = serve_tls(&pki, ClientCertificates::Optional, true, 4096);
    assert!(is_let_in(fixture.encrypted(&without)));
}

#[test]
fn the_end_of_an_encrypted_connection_is_announced() {
    let pki = Pki::new();
    let fixture = required(&pki);
    let mut client = fixture.encrypted(&pki.client(None));
    client.go(b"disk", &[]);
    client.request(0, DISC, 1, 0, 0);
    // An end that is not announced would be an error.
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    let mut client = fixture.encrypted(&pki.client(None));
    client.send_option(2, b"");
    assert_eq!(client.option_reply(2), (1, vec![]));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_shutdown_answers_what_has_been_sent_encrypted() {
    let pki = Pki::new();
    let fixture = required(&pki);
    let mut client = fixture.encrypted(&pki.client(None));
    client.go(b"disk", &[]);
    assert_eq!(client.read(0, 1), [0]);
    assert!(fixture.server.shutdown(Duration::from_secs(20)));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_tls_handshake_that_drags_on_is_cut_off() {
    let pki = Pki::new();
    let fixture = serve_with(|builder| {
        builder
            .export("disk", "", Arc::new(Memory::new(4096)))
            .tls(pki.server(ClientCertificates::Ignored), true)
            .handshake_timeout(Duration::from_millis(100))
    });
    let mut client = fixture.greeted();
    client.send_option(5, b"");
    client.option_reply(5);
    // The head of a record of 16 KiB, and then a byte now and then.
    client.send(&[22, 3, 1, 0x40, 0]);
    let started = Instant::now();
    while client.stream.write_all(&[1]).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_client_may_vanish_or_talk_nonsense_at_any_byte_of_its_first_record() {
    let pki = Pki::new();
    panics();
    let fixture = required(&pki);
    let name = "localhost".try_into().unwrap();
    let mut hello = Vec::new();
    let mut connection = rustls::ClientConnection::new(pki.client(None), name).unwrap();
    connection.write_tls(&mut hello).unwrap();
    let mut session = [&3u32.to_be_bytes()[..], &option(5, b"")].concat();
    session.extend(&hello);
    for at in 20..session.len() {
        fixture.connect().send(&session[..at]);
        if at % 5 == 0 {
            let mut changed = session.clone();
            changed[at] ^= 0xff;
            // It may be cut off before it has sent all.
            let _ = fixture.connect().stream.write_all(&changed);
        }
    }
    settles(&fixture);
    assert!(is_let_in(fixture.encrypted(&pki.client(None))));
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let pki = Pki::new();
    let load = |clients| TlsConfig::load(pki.path(), clients).map(drop);
    let file = |name: &str| pki.path().join(name);
    std::fs::rename(file("ca-cert.pem"), file("away")).unwrap();
    assert!(load(ClientCertificates::Ignored).is_ok());
    let error = load(ClientCertificates::Required).unwrap_err();
    assert!(matches!(&error, TlsError::File { path, .. } if path.ends_with("ca-cert.pem")), "{error}");
    std::fs::rename(file("away"), file("ca-cert.pem")).unwrap();
    std::fs::write(file("ca-crl.pem"), "-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----\n").unwrap();
    assert!(load(ClientCertificates::Optional).unwrap_err().to_string().contains("ca-crl.pem"));
    std::fs::remove_file(file("ca-crl.pem")).unwrap();
    std::fs::copy(file("client-key.pem"), file("server-key.pem")).unwrap();
    let error = load(ClientCertificates::Ignored).unwrap_err().to_string();
    assert!(error.contains("server-cert.pem and server-key.pem"), "{error}");
    std::fs::write(file("server-cert.pem"), "nothing of the kind").unwrap();
    let error = load(ClientCertificates::Ignored).unwrap_err().to_string();
    assert!(error.contains("server-cert.pem: expected certificates"), "{error}");
}

/// Silence, long by this measure, in every place of a request: the server frees what it has, and loses
/// nothing.
#[test]
fn silence_longer_than_the_idle_time_costs_no_request_encrypted_or_not() {
    let pki = Pki::new();
    let config = pki.server(ClientCertificates::Ignored);
    let fixture = serve_with(|builder| {
        let builder = builder.export("disk", "a disk", Arc::new(Memory::new(1 << 20)));
        builder.tls(config, false).idle_time(Duration::from_millis(1))
    });
    let mut encrypted = fixture.encrypted(&pki.client(None));
    encrypted.go(b"disk", &[]);
    speak_with_pauses(&mut fixture.simple());
    speak_with_pauses(&mut encrypted);
}

fn speak_with_pauses<S: Read + Write>(client: &mut Client<S>) {
    let mut write = request(0, WRITE, 1, 4096, 8192);
    write.extend([9; 8192]);
    // Before it, in its header, between header and payload, in the payload.
    for cut in [0, 1, 27, 28, 29, 5000] {
        let (before, after) = write.split_at(cut);
        client.send(before);
        // Only the passing of time is silence.
        std::thread::sleep(Duration::from_millis(30));
        client.send(after);
        assert_eq!(client.simple_reply(), (1, 0), "cut at {cut}");
        assert_eq!(client.read(4096, 8192), [9; 8192]);
    }
}

/// Each of these was taken for "nobody is revoked", and who had been revoked was let in.
#[test]
fn a_list_of_revoked_certificates_that_cannot_be_read_admits_nobody_instead_of_everybody() {
    let pki = Pki::new();
    let list = pki.path().join("ca-crl.pem");
    let refused = |what: &str| {
        let error = TlsConfig::load(pki.path(), ClientCertificates::Required).map(drop).unwrap_err();
        assert!(error.to_string().contains("ca-crl.pem"), "{what}: {error}");
    };
    for (what, content) in [("empty", ""), ("text", "nobody is revoked\n")] {
        std::fs::write(&list, content).unwrap();
        refused(what);
    }
    std::fs::copy(pki.path().join("ca-cert.pem"), &list).unwrap();
    refused("a certificate");
    pki.revoke_client();
    let whole = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, &whole[..whole.len() / 2]).unwrap();
    refused("cut off");
    // The right frame around what is no list.
    let certificate = std::fs::read_to_string(pki.path().join("ca-cert.pem")).unwrap();
    std::fs::write(&list, certificate.replace("CERTIFICATE", "X509 CRL")).unwrap();
    refused("a certificate in a list's frame");
    std::fs::remove_file(&list).unwrap();
    std::os::unix::fs::symlink("nowhere", &list).unwrap();
    refused("a link to nothing");
}

#[test]
fn certificates_and_lists_that_are_read_again_hold_for_who_comes_then() {
    let pki = Pki::new();
    let config = pki.server(ClientCertificates::Required);
    let fixture = serve_with(|builder| {
        builder.export("disk", "", Arc::new(Memory::new(4096))).tls(config.clone(), true)
    });
    let with = pki.client(Some(&pki));
    let mut before = fixture.encrypted(&with);
    before.go(b"disk", &[]);
    pki.revoke_client();
    assert!(is_let_in(fixture.encrypted(&with)), "nothing is read without being asked for");
    config.reload().unwrap();
    assert!(!is_let_in(fixture.encrypted(&with)), "revoked");
    assert_eq!(before.read(0, 1), [0], "who is in stays in");
    // A new version that cannot be used leaves the old one in force.
    std::fs::write(pki.path().join("ca-crl.pem"), "").unwrap();
    config.reload().unwrap_err();
    assert!(!is_let_in(fixture.encrypted(&with)), "still revoked");
}

#[test]
fn of_those_whom_the_authority_has_signed_only_the_named_ones_are_let_in() {
    let pki = Pki::new();
    pki.issue_client(&["backup.example.com"]);
    let (without, with) = (pki.client(None), pki.client(Some(&pki)));
    for (allowed, expected) in [
        (&["test client"][..], true),
        (&["nobody", "BACKUP.example.com"], true),
        (&["nobody"], false),
        (&["example.com"], false),
        (&["test"], false),
    ] {
        let names = allowed.iter().map(|name| (*name).to_owned()).collect();
        let fixture = serve_tls(&pki, ClientCertificates::Named(names), true, 4096);
        assert_eq!(is_let_in(fixture.encrypted(&with)), expected, "{allowed:?}");
        assert!(!is_let_in(fixture.encrypted(&without)), "{allowed:?}: without a certificate");
    }
    // The name alone is worth nothing.
    let stranger = Pki::new();
    let fixture = serve_tls(&pki, ClientCertificates::Named(vec!["test client".into()]), true, 4096);
    assert!(!is_let_in(fixture.encrypted(&pki.client(Some(&stranger)))));
}

#[test]
fn what_has_expired_or_soon_will_is_told() {
    let pki = Pki::new();
    pki.revoke_client();
    let config = pki.server(ClientCertificates::Required);
    let at = |year: u64| {
        let seconds = (year - 1970) * 31_556_952;
        config.warnings(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    assert_eq!(at(2030), Vec::<String>::new());
    // Certificates are valid until 4096, the list until 4000.
    let [list] = &at(4010)[..] else { panic!("{:?}", at(4010)) };
    assert!(list.contains("ca-crl.pem") && list.contains("expired"), "{list}");
    let late = at(4100);
    assert!(late.iter().any(|warning| warning.starts_with("server-cert.pem")), "{late:?}");
    assert!(at(1971).iter().any(|warning| warning.contains("valid from")), "{:?}", at(1971));
}
