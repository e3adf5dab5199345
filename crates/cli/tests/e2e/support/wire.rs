//! The operator's network: a TCP relay that records what passes, and an HTTP man in
//! the middle that changes it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Everything that crossed a relay, both directions in one place.
#[derive(Clone, Default)]
pub(crate) struct Recording(Arc<Mutex<Vec<u8>>>);

impl Recording {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0
            .lock()
            .expect("no thread panicked with the recording")
            .clone()
    }
}

/// Relays one listening port to `target` and records every byte.
pub(crate) fn recording_relay(target: SocketAddr) -> (SocketAddr, Recording) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener
        .local_addr()
        .expect("a bound listener has an address");
    let recording = Recording::default();
    let shared = recording.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) else {
                continue;
            };
            let (Ok(client_copy), Ok(server_copy)) = (client.try_clone(), server.try_clone())
            else {
                continue;
            };
            relay(client, server, shared.clone());
            relay(server_copy, client_copy, shared.clone());
        }
    });
    (address, recording)
}

fn relay(mut from: TcpStream, mut to: TcpStream, recording: Recording) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                break;
            }
            recording
                .0
                .lock()
                .expect("no thread panicked with the recording")
                .extend(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

/// A request as a man in the middle sees it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path_and_query: String,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

/// An answer as a man in the middle gives it.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

/// Serves HTTP with `answer`, one request a connection. It may ask the real server.
pub(crate) fn man_in_the_middle(
    answer: impl Fn(Seen) -> Given + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener
        .local_addr()
        .expect("a bound listener has an address");
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = serve_one(stream, answer.as_ref());
            });
        }
    });
    address
}

fn serve_one(
    mut stream: TcpStream,
    answer: &(dyn Fn(Seen) -> Given + Send + Sync),
) -> std::io::Result<()> {
    let mut received = Vec::new();
    let mut buffer = [0; 16 << 10];
    let head_end = loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        received.extend(&buffer[..count]);
    };
    let head = String::from_utf8_lossy(&received[..head_end]).into_owned();
    let header = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let length = header("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut body = received.split_off(head_end);
    while body.len() < length {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        body.extend(&buffer[..count]);
    }
    let mut first = head
        .lines()
        .next()
        .unwrap_or("")
        .split(' ')
        .map(str::to_owned);
    let given = answer(Seen {
        method: first.next().unwrap_or_default(),
        path_and_query: first.next().unwrap_or_default(),
        content_type: header("content-type").unwrap_or_default(),
        body,
    });
    write!(
        stream,
        "HTTP/1.1 {} Answer\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        given.status,
        given.content_type,
        given.body.len()
    )?;
    stream.write_all(&given.body)
}

/// Asks a server as plainly as curl would.
pub(crate) fn ask(target: SocketAddr, seen: &Seen) -> Given {
    ask_announcing(target, seen, seen.body.len())
}

/// Asks a server with a `content-length` of the caller's: a server that refuses a
/// length answers before the body comes, and closes.
pub(crate) fn ask_announcing(target: SocketAddr, seen: &Seen, length: usize) -> Given {
    let mut stream = TcpStream::connect(target).expect("the server listens");
    let content_type = if seen.content_type.is_empty() {
        "application/octet-stream"
    } else {
        &seen.content_type
    };
    write!(
        stream,
        "{} {} HTTP/1.1\r\nhost: {target}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n",
        seen.method,
        seen.path_and_query,
    )
    .and_then(|()| stream.write_all(&seen.body))
    .expect("the server reads the request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server answers");
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("an HTTP answer");
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    let content_type = head
        .lines()
        .find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case("content-type")
                .then(|| value.trim().to_owned())
        })
        .unwrap_or_default();
    assert!(
        !head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked"),
        "the test's client reads answers of known length"
    );
    Given {
        status,
        content_type,
        body: answer[end + 4..].to_vec(),
    }
}

/// A GET without a body.
pub(crate) fn get(target: SocketAddr, path_and_query: &str) -> Given {
    ask(
        target,
        &Seen {
            method: "GET".to_owned(),
            path_and_query: path_and_query.to_owned(),
            content_type: String::new(),
            body: Vec::new(),
        },
    )
}
