//! The operator's network: a TCP relay that records what passes, and an HTTP man in
//! the middle that changes it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Everything that crossed a relay, both directions in one place.
#[derive(Debug, Clone, Default)]
pub struct Recording(Arc<Mutex<Vec<u8>>>);

impl Recording {
    /// What crossed so far.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Relays one listening port to `target` and records every byte.
///
/// # Errors
/// There is no free port.
pub fn recording_relay(target: SocketAddr) -> io::Result<(SocketAddr, Recording)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
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
    Ok((address, recording))
}

fn relay(mut from: TcpStream, mut to: TcpStream, recording: Recording) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                break;
            }
            recording.lock().extend(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

/// A request as a man in the middle sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET` or another.
    pub method: String,
    /// What is asked for.
    pub path_and_query: String,
    /// Header fields besides those of the connection, in lower case.
    pub fields: Vec<(String, String)>,
    /// What came.
    pub body: Vec<u8>,
}

impl Seen {
    /// A request of a type.
    #[must_use]
    pub fn new(method: &str, path_and_query: &str, content_type: &str, body: Vec<u8>) -> Self {
        Self {
            method: method.to_owned(),
            path_and_query: path_and_query.to_owned(),
            fields: vec![("content-type".to_owned(), content_type.to_owned())],
            body,
        }
    }
}

/// An answer as a man in the middle gives it.
#[derive(Debug, Clone)]
pub struct Given {
    /// The status code.
    pub status: u16,
    /// Header fields besides those of the connection.
    pub fields: Vec<(String, String)>,
    /// What is given.
    pub body: Vec<u8>,
}

impl Given {
    /// An answer of a type.
    #[must_use]
    pub fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        Self {
            status,
            fields: vec![("content-type".to_owned(), content_type.to_owned())],
            body,
        }
    }
}

/// Serves HTTP with `answer`, one request a connection. It may ask the real server.
///
/// # Errors
/// There is no free port.
pub fn man_in_the_middle(
    answer: impl Fn(Seen) -> Given + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = serve_one(stream, answer.as_ref());
            });
        }
    });
    Ok(address)
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
        fields: fields(head.lines().skip(1)),
        body,
    });
    write!(
        stream,
        "HTTP/1.1 {} Answer\r\ncontent-length: {}\r\nconnection: close\r\n",
        given.status,
        given.body.len()
    )?;
    for (name, value) in &given.fields {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&given.body)
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks a server as plainly as curl would.
///
/// # Errors
/// It does not listen, or gives no answer of HTTP.
pub fn ask(target: SocketAddr, seen: &Seen) -> io::Result<Given> {
    ask_announcing(target, seen, seen.body.len() as u64, PATIENCE)
}

/// Asks a server with a `content-length` of the caller's: a server that refuses a
/// length answers before the body comes, and closes.
///
/// # Errors
/// It does not listen, or gives no answer of HTTP in time.
pub fn ask_announcing(
    target: SocketAddr,
    seen: &Seen,
    length: u64,
    patience: Duration,
) -> io::Result<Given> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "{} {} HTTP/1.1\r\nhost: {target}\r\ncontent-length: {length}\r\nconnection: close\r\n",
        seen.method, seen.path_and_query,
    )?;
    for (name, value) in &seen.fields {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&seen.body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other("no answer of HTTP"))
}

/// Header fields besides those of the connection, names in lower case.
fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    const OF_A_CONNECTION: [&str; 4] = ["connection", "content-length", "date", "host"];
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .filter(|(name, _)| !OF_A_CONNECTION.contains(&name.as_str()))
        .collect()
}

/// Reads an answer of known length.
fn parse(answer: &[u8]) -> Option<Given> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let fields = fields(lines);
    if fields.iter().any(|(name, _)| name == "transfer-encoding") {
        return None;
    }
    Some(Given {
        status,
        fields,
        body: answer[end + 4..].to_vec(),
    })
}

/// A GET without a body.
///
/// # Errors
/// As [`ask`].
pub fn get(target: SocketAddr, path_and_query: &str) -> io::Result<Given> {
    let seen = Seen {
        method: "GET".to_owned(),
        path_and_query: path_and_query.to_owned(),
        fields: Vec::new(),
        body: Vec::new(),
    };
    ask(target, &seen)
}
