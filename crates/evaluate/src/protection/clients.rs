//! Somebody who asks: tensors that are none, tokens that are wrong, connections that are
//! held open.

use std::io::Write;
use std::net::TcpStream;

use occlude_weakening::Weakening;

use super::site::{CHANNEL, MODEL, Site, judge};
use super::wire::{Seen as Request, ask};
use super::{Attacker, Check, Seen, model};
use crate::processes::{DeploymentError, failed};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "malformed-tensors",
        attacker: Attacker::Client,
        tried: "ask with tensors of a wrong name, type or shape, of shapes without values, as JSON that \
                is none or nested without end, and see whether others are served",
        weakening: Weakening::Fragile,
        carry_out: malformed_tensors,
    },
    Check {
        name: "wrong-tokens",
        attacker: Attacker::Client,
        tried: "use a user's local proxy, which asks for a token, without one, with another, with a part \
                of it",
        weakening: Weakening::AnyToken,
        carry_out: wrong_tokens,
    },
    Check {
        name: "slow-connections",
        attacker: Attacker::Client,
        tried: "open dozens of connections that announce requests and send nothing, and see whether \
                others are served",
        weakening: Weakening::DeclaredMemory,
        carry_out: slow_connections,
    },
];

/// Asks for an answer in JSON.
fn question(body: Vec<u8>) -> Request {
    let path = format!("/v2/models/{MODEL}/infer");
    Request::new("POST", &path, "application/json", body)
}

fn tensor(name: &str, datatype: &str, shape: &[i64], data: &[f32]) -> Vec<u8> {
    let input = serde_json::json!({
        "name": name, "datatype": datatype, "shape": shape, "data": data,
    });
    serde_json::json!({"inputs": [input]})
        .to_string()
        .into_bytes()
}

fn malformed_tensors(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "asking through a proxy";
    let server = site.serve()?;
    let proxy = site.proxy(&server, &[])?;
    let (features, good) = (model::FEATURES as i64, vec![0.5; model::FEATURES]);
    let of = |shape: &[i64]| tensor(model::INPUT, "FP32", shape, &good);
    let mut nested = vec![b'['; 200_000];
    nested.splice(0..0, *b"{\"inputs\":");
    let malformed = [
        tensor("no_such_input", "FP32", &[1, features], &good),
        tensor(model::INPUT, "INT64", &[1, features], &good),
        tensor(model::INPUT, "FP33", &[1, features], &good),
        of(&[features]),
        of(&[2, features]),
        of(&[-1, features]),
        of(&[1 << 40, features]),
        of(&[i64::MAX, i64::MAX]),
        tensor(model::INPUT, "FP32", &[1, features], &[]),
        b"{\"inputs\": []}".to_vec(),
        b"{".to_vec(),
        vec![0xff; 4096],
        nested,
    ];
    let count = malformed.len();
    let mut attempts = Vec::new();
    for body in malformed {
        attempts.push(match ask(proxy.address, &question(body)) {
            Ok(given) if (400..500).contains(&given.status) => Ok(String::new()),
            Ok(given) => Err(format!("one led to {}", given.status)),
            Err(error) => Err(format!("one got no answer: {error}")),
        });
    }
    let next = ask(proxy.address, &question(of(&[1, features]))).map_err(failed(DOING))?;
    attempts.push(match next.status {
        200 => Ok(String::new()),
        other => Err(format!("the next one led to {other}")),
    });
    Ok(match judge(attempts) {
        Seen::Held(_) => Seen::Held(format!("{count} refused, and the next one answered")),
        broke @ Seen::Broke(_) => broke,
    })
}

fn wrong_tokens(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "asking through a proxy";
    const TOKEN: &str = "a-token-of-this-users-own";
    let file = site.owner.at("token");
    std::fs::write(&file, TOKEN).map_err(failed(DOING))?;
    let server = site.serve()?;
    let proxy = site.proxy(&server, &["--token-file", &site.owner.text("token")])?;
    let body = tensor(model::INPUT, "FP32", &[1, 64], &[0.5; 64]);
    let ask_with = |token: Option<String>| {
        let mut request = question(body.clone());
        let field = token.map(|token| ("authorization".to_owned(), token));
        request.fields.extend(field);
        ask(proxy.address, &request).map_err(failed(DOING))
    };
    let right = ask_with(Some(format!("Bearer {TOKEN}")))?;
    if right.status != 200 {
        return Err(failed(DOING)(String::from_utf8_lossy(&right.body)));
    }
    let wrong = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer another-token-of-some-length".to_owned()),
        Some(format!("Bearer {}", &TOKEN[..TOKEN.len() - 1])),
        Some(format!("Bearer {TOKEN}s")),
        Some(format!("Basic {TOKEN}")),
    ];
    let mut attempts = Vec::new();
    for token in wrong {
        attempts.push(match ask_with(token)?.status {
            401 => Ok("each refused with 401".to_owned()),
            other => Err(format!("one led to {other}")),
        });
    }
    Ok(judge(attempts))
}

fn slow_connections(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "opening connections";
    let server = site.serve()?;
    let mut connections = Vec::new();
    // Large ones first, so that small ones would take what they leave.
    let sizes = [48 << 20, 8 << 20, 1 << 20, 128 << 10, 16 << 10, 4 << 10];
    for size in sizes.into_iter().flat_map(|size| [size; 12]) {
        let mut connection = TcpStream::connect(server.address).map_err(failed(DOING))?;
        write!(
            connection,
            "POST {CHANNEL} HTTP/1.1\r\nhost: x\r\ncontent-type: message/ohttp-req\r\n\
             content-length: {size}\r\n\r\n"
        )
        .map_err(failed(DOING))?;
        connections.push(connection);
    }
    // They are accepted by now, or never.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let said = site.infer(&server.url(), &model::secret_input(50))?;
    Ok(judge([match said.code {
        0 => Ok(format!(
            "somebody else is answered beside {}",
            connections.len()
        )),
        _ => Err(format!("somebody else is not answered: {}", said.reason())),
    }]))
}
