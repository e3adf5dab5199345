//! Somebody who asks: tensors that are none, tokens that are wrong, connections that are
//! held open.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use occlude_weakening::Weakening;

use super::site::{CHANNEL, MODEL, Site, judge};
use super::wire::{Seen as Request, ask};
use super::{Attacker, Check, Seen, model};
use crate::processes::{DeploymentError, Service, failed};

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
    Check {
        name: "over-quota",
        attacker: Attacker::Client,
        tried: "ask a model with budgets without a token, with one that another key signed, more often \
                than allowed, at a replica, after a restart, and by other names",
        weakening: Weakening::UncountedQueries,
        carry_out: over_quota,
    },
    Check {
        name: "unpaid-answers",
        attacker: Attacker::Client,
        tried: "ask a model whose answers cost work without doing any, and with no more than its first \
                answers cost after it told much, also at a replica and after a restart",
        weakening: Weakening::UnworkedAnswers,
        carry_out: unpaid_answers,
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

/// Answers that one client may have, and all together.
const OF_CLIENT: usize = 3;
const OF_MODEL: usize = 8;

/// The issuer's name.
const ISSUER: &str = "https://issuer.example";

fn over_quota(site: &Site) -> Result<Seen, DeploymentError> {
    const COUNTED: &str = "counted.occ";
    seal_counted(
        site,
        COUNTED,
        &format!("client = {{ window = {OF_CLIENT} }}\nmodel = {{ total = {OF_MODEL} }}"),
    )?;
    let server = site.owner.serve(COUNTED, &[])?;
    let mut attempts = Vec::new();
    let nobody = site.proxy(&server, &[])?;
    make_token(site, "other.pem", "alice", "forged")?;
    let forged = site.proxy(&server, &["--client-token", &site.owner.text("forged")])?;
    for proxy in [&nobody, &forged] {
        attempts.push(match ask_often(proxy, 1)? {
            (0, 401) => Ok("without an issuer's token 401".to_owned()),
            (_, status) => Err(format!("without an issuer's token one led to {status}")),
        });
    }

    let mut answered = 0;
    let mut ask_as = |server: &Service, name: &str, allowed: usize| {
        make_token(site, "issuer.pem", name, name)?;
        let proxy = site.proxy(server, &["--client-token", &site.owner.text(name)])?;
        let (found, last) = ask_often(&proxy, 2 * OF_MODEL)?;
        answered += found;
        Ok::<_, DeploymentError>(match (found, last) {
            (found, 429) if found == allowed => Ok(String::new()),
            (found, last) => Err(format!(
                "{name} got {found} answers where {allowed} were left, and then {last}"
            )),
        })
    };
    attempts.push(ask_as(&server, "alice", OF_CLIENT)?);
    let replica = site.owner.serve(COUNTED, &[])?;
    attempts.push(ask_as(&replica, "alice", 0)?);
    drop(replica);
    drop(server);
    let server = site.owner.serve(COUNTED, &[])?;
    attempts.push(ask_as(&server, "alice", 0)?);
    attempts.push(ask_as(&server, "bob", OF_CLIENT)?);
    // The replica took one answer along when it ended.
    attempts.push(ask_as(&server, "carol", OF_MODEL - 2 * OF_CLIENT - 1)?);
    Ok(match judge(attempts) {
        Seen::Held(seen) => Seen::Held(format!(
            "{}; {OF_CLIENT} answers for one name and {answered} of {OF_MODEL} for all, then 429, \
             also from a replica and after a restart",
            seen.trim_end_matches("; ")
        )),
        broke @ Seen::Broke(_) => broke,
    })
}

/// Bits of work that the first answers cost.
const BITS: u32 = 8;

fn unpaid_answers(site: &Site) -> Result<Seen, DeploymentError> {
    const DEAR: &str = "dear.occ";
    let work =
        format!("client = {{ window = 1000 }}\n[work]\nbits = {BITS}\ngain = 1.0\nmost-bits = 40");
    seal_counted(site, DEAR, &work)?;
    make_token(site, "issuer.pem", "mallory", "mallory")?;
    let token = site.owner.text("mallory");
    let ask_with = |server: &Service, bits: u32, times: usize| {
        let most = bits.to_string();
        let options = ["--client-token", &token, "--most-work", &most];
        ask_often(&site.proxy(server, &options)?, times)
    };
    let server = site.owner.serve(DEAR, &[])?;
    let nothing_for = |when: &str, (answers, status): (usize, u16)| match (answers, status) {
        (0, 428) => Ok(format!("{when} 428")),
        (_, status) => Err(format!("{when} one led to {status}")),
    };
    let mut attempts = vec![nothing_for("without work", ask_with(&server, 0, 1)?)];
    // Until some answers have told so much that they are dearer.
    let (answers, last) = ask_with(&server, BITS + 2, 1000)?;
    attempts.push(match (answers, last) {
        (1..1000, 428) => Ok(format!("{answers} answers for what they cost")),
        (answers, last) => Err(format!("{answers} answers, and then {last}")),
    });
    attempts.push(nothing_for(
        "for less then",
        ask_with(&server, BITS + 1, 1)?,
    ));
    let replica = site.owner.serve(DEAR, &[])?;
    attempts.push(nothing_for(
        "at a replica",
        ask_with(&replica, BITS + 1, 1)?,
    ));
    drop(replica);
    drop(server);
    let server = site.owner.serve(DEAR, &[])?;
    let restarted = ask_with(&server, BITS + 1, 1)?;
    attempts.push(nothing_for("after a restart", restarted));
    Ok(judge(attempts))
}

/// Seals the site's model with budgets, and the keys of issuers: one that it names, and one
/// that it does not.
fn seal_counted(site: &Site, output: &str, budgets: &str) -> Result<(), DeploymentError> {
    const DOING: &str = "making a guarded model";
    let issuer = site.owner.issuer("issuer.pem", ISSUER)?;
    site.owner.issuer("other.pem", ISSUER)?;
    let guard = format!(
        "format = 1\noutput = \"{}\"\n[budgets]\nwindow-seconds = 31536000\n\
         {budgets}\n{issuer}",
        model::OUTPUT
    );
    std::fs::write(site.owner.at("guard.toml"), guard).map_err(failed(DOING))?;
    let guard = site.owner.text("guard.toml");
    site.seal_with(output, MODEL, 2, &["--guard", &guard])?;
    site.owner
        .must_order(&["add-model", &site.owner.text(output)])
        .map(drop)
}

/// A token by the key in one file, written to another.
fn make_token(site: &Site, key: &str, subject: &str, output: &str) -> Result<(), DeploymentError> {
    let token = site.owner.token(key, ISSUER, subject, &[MODEL])?;
    std::fs::write(site.owner.at(output), token).map_err(failed("writing a token"))
}

/// Asks so often through a proxy: how many answers came, and the last status.
fn ask_often(proxy: &Service, times: usize) -> Result<(usize, u16), DeploymentError> {
    let body = tensor(model::INPUT, "FP32", &[1, 64], &[0.5; 64]);
    let (mut answered, mut last) = (0, 0);
    for _ in 0..times {
        let given = ask(proxy.address, &question(body.clone()));
        last = given.map_err(failed("asking through a proxy"))?.status;
        answered += usize::from(last == 200);
    }
    Ok((answered, last))
}

fn slow_connections(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "opening connections";
    let server = site.serve()?;
    let mut connections = Vec::new();
    let mut open = |size: u32| -> Result<usize, DeploymentError> {
        for _ in 0..12 {
            let mut connection = TcpStream::connect(server.address).map_err(failed(DOING))?;
            write!(
                connection,
                "POST {CHANNEL} HTTP/1.1\r\nhost: x\r\ncontent-type: message/ohttp-req\r\n\
                 content-length: {size}\r\n\r\n"
            )
            .map_err(failed(DOING))?;
            connections.push(connection);
        }
        // A busy machine takes its time until all are accepted.
        std::thread::sleep(Duration::from_millis(100));
        Ok(connections.len())
    };
    // Large ones first, so that small ones would take what they leave.
    for size in [48 << 20, 8 << 20, 1 << 20, 128 << 10] {
        open(size)?;
    }
    let mut count = 0;
    for _ in 0..6 {
        // And some more small ones each time: what came in another order may have left more.
        for size in [16 << 10, 4 << 10] {
            count = open(size)?;
        }
        let said = site.infer(&server.url(), &model::secret_input(50))?;
        if said.code != 0 {
            let reason = said.reason();
            return Ok(Seen::Broke(format!(
                "somebody else is not answered: {reason}"
            )));
        }
    }
    Ok(Seen::Held(format!(
        "somebody else is answered beside {count}"
    )))
}
