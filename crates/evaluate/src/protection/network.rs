//! Somebody on the way, and somebody who asks: messages altered, repeated, malformed and
//! counted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use occlude_weakening::Weakening;

use super::site::{MODEL, Middle, Site, is_of_a_model, judge, tidy};
use super::wire::{Given, Seen as Request, ask, ask_announcing};
use super::{Attacker, Check, Seen, model};
use crate::processes::{DeploymentError, Service, failed};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "replayed-request",
        attacker: Attacker::Network,
        tried: "send a recorded request once more, at once and after the server was restarted",
        weakening: Weakening::NoReplayMemory,
        carry_out: replayed_request,
    },
    Check {
        name: "altered-answer",
        attacker: Attacker::Network,
        tried: "change one byte of an answer, at several places; and give one question's answer to the next",
        weakening: Weakening::PlainChannel,
        carry_out: altered_answer,
    },
    Check {
        name: "plain-answer",
        attacker: Attacker::Network,
        tried: "answer a request with a result that was never encapsulated, and ask the server \
                without encapsulating",
        weakening: Weakening::PlainChannel,
        carry_out: plain_answer,
    },
    Check {
        name: "malformed-messages",
        attacker: Attacker::Client,
        tried: "send requests that are empty, cut, put together otherwise, or changed at several \
                places, and see whether others are served",
        weakening: Weakening::Fragile,
        carry_out: malformed_messages,
    },
    Check {
        name: "oversized-message",
        attacker: Attacker::Client,
        tried: "announce a request of a terabyte",
        weakening: Weakening::NoLimits,
        carry_out: oversized_message,
    },
    Check {
        name: "message-sizes",
        attacker: Attacker::Network,
        tried: "tell requests of different inputs apart by their length, and answers and errors by \
                theirs",
        weakening: Weakening::NoPadding,
        carry_out: message_sizes,
    },
];

/// A genuine request, encapsulated, as somebody on the way has it.
fn captured(site: &Site, server: &Service) -> Result<Request, DeploymentError> {
    let middle = Middle::looking(server.address)?;
    site.must_infer(&middle.url(), &model::secret_input(30))?;
    let first = middle.exchanges().into_iter().next();
    let (request, _) = first.ok_or_else(|| failed("recording a request")("none passed"))?;
    Ok(request)
}

/// A refusal from outside of the channel.
fn not_answered(when: &str, given: &Given) -> Result<String, String> {
    if given.status == 200 {
        return Err(format!("{when}: it was answered"));
    }
    Ok(format!("{when}: refused with {}", given.status))
}

fn replayed_request(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "sending a request again";
    let server = site.serve()?;
    let request = captured(site, &server)?;
    let at_once = ask(server.address, &request).map_err(failed(DOING))?;
    drop(server);
    let again = site.serve()?;
    let restarted = ask(again.address, &request).map_err(failed(DOING))?;
    Ok(judge([
        not_answered("at once", &at_once),
        not_answered("after a restart", &restarted),
    ]))
}

fn altered_answer(site: &Site) -> Result<Seen, DeploymentError> {
    let server = site.serve()?;
    let input = model::secret_input(31);
    let mut attempts = Vec::new();
    for part in 1..12 {
        let passed = AtomicUsize::new(0);
        let middle = Middle::new(
            server.address,
            |_| (),
            move |seen, given| {
                // The first answer says what the model takes.
                if is_of_a_model(seen) && passed.fetch_add(1, Ordering::SeqCst) > 0 {
                    let place = given.body.len() * part / 12;
                    given.body[place] ^= 1;
                }
            },
        )?;
        let said = site.infer(&middle.url(), &input)?;
        attempts.push(match said.code {
            0 => Err("a changed answer was taken for one".to_owned()),
            _ => Ok(tidy(&said)),
        });
    }
    attempts.push(earlier_answer(site, &server)?);
    Ok(judge(attempts))
}

/// A genuine answer of the same server, to the question before.
fn earlier_answer(
    site: &Site,
    server: &Service,
) -> Result<Result<String, String>, DeploymentError> {
    let (passed, earlier) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let middle = Middle::new(
        server.address,
        |_| (),
        move |seen, given| {
            if !is_of_a_model(seen) {
                return;
            }
            let mut earlier = earlier.lock().unwrap_or_else(PoisonError::into_inner);
            // Each user asks what the model takes, and then the model.
            match passed.fetch_add(1, Ordering::SeqCst) {
                1 => *earlier = given.body.clone(),
                3 => given.body.clone_from(&earlier),
                _ => {}
            }
        },
    )?;
    site.must_infer(&middle.url(), &model::secret_input(32))?;
    let said = site.infer(&middle.url(), &model::secret_input(33))?;
    Ok(match said.code {
        0 => Err("another question's answer was taken".to_owned()),
        _ => Ok(tidy(&said)),
    })
}

fn plain_answer(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "answering in the clear";
    let server = site.serve()?;
    let body = serde_json::json!({
        "model_name": MODEL,
        "outputs": [{
            "name": model::OUTPUT, "datatype": "FP32", "shape": [1, 10],
            "data": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }],
    });
    let forged = Given::new(200, "application/json", body.to_string().into_bytes());
    let middle = Middle::new(
        server.address,
        |_| (),
        move |seen, given| {
            if is_of_a_model(seen) {
                *given = forged.clone();
            }
        },
    )?;
    let said = site.infer(&middle.url(), &model::secret_input(32))?;
    let answer = match said.code {
        0 => Err("a forged answer was taken for one".to_owned()),
        _ => Ok(tidy(&said)),
    };
    let path = format!("/v2/models/{MODEL}/infer");
    let asked = ask(
        server.address,
        &Request::new("POST", &path, "application/json", b"{}".to_vec()),
    );
    let asked = asked.map_err(failed(DOING))?;
    let request = match asked.status {
        421 => Ok("a request in the clear: refused with 421".to_owned()),
        other => Err(format!("a request in the clear was answered with {other}")),
    };
    Ok(judge([answer, request]))
}

fn malformed_messages(site: &Site) -> Result<Seen, DeploymentError> {
    let server = site.serve()?;
    let genuine = captured(site, &server)?;
    let body = &genuine.body;
    let (first, second) = body.split_at(body.len() / 2);
    let mut bodies = vec![
        Vec::new(),
        vec![0],
        vec![0xff; 100],
        first.to_vec(),
        body[..body.len() - 1].to_vec(),
        [second, first].concat(),
        [body.as_slice(), b"more"].concat(),
    ];
    for place in (0..body.len()).step_by(body.len() / 12) {
        let mut changed = body.clone();
        changed[place] ^= 1;
        bodies.push(changed);
    }
    let count = bodies.len();
    let mut attempts = Vec::new();
    for body in bodies {
        let request = Request {
            body,
            ..genuine.clone()
        };
        attempts.push(match ask(server.address, &request) {
            Ok(given) if given.status == 200 => Err("one was answered".to_owned()),
            Ok(given) if given.status >= 500 => Err(format!("one led to {}", given.status)),
            Ok(_) => Ok(String::new()),
            Err(error) => Err(format!("one got no answer: {error}")),
        });
    }
    let said = site.infer(&server.url(), &model::secret_input(33))?;
    attempts.push(match said.code {
        0 => Ok(String::new()),
        _ => Err(format!("nobody is served afterwards: {}", said.reason())),
    });
    Ok(match judge(attempts) {
        Seen::Held(_) => Seen::Held(format!("{count} refused, and the next one answered")),
        broke @ Seen::Broke(_) => broke,
    })
}

fn oversized_message(site: &Site) -> Result<Seen, DeploymentError> {
    let server = site.serve()?;
    let genuine = captured(site, &server)?;
    let empty = Request {
        body: Vec::new(),
        ..genuine
    };
    let given = ask_announcing(server.address, &empty, 1 << 40, Duration::from_secs(3));
    Ok(judge([match given {
        Ok(given) if given.status == 413 => Ok("refused with 413, before it came".to_owned()),
        Ok(given) => Err(format!("it led to {}", given.status)),
        Err(_) => Err("the server waits for it".to_owned()),
    }]))
}

fn message_sizes(site: &Site) -> Result<Seen, DeploymentError> {
    let server = site.serve()?;
    let middle = Middle::looking(server.address)?;
    let one = model::secret_input(34);
    // Twice the batch: another length inside, in the same bucket.
    let two = [one.clone(), model::secret_input(35)].concat();
    for input in [&one, &two] {
        let said = site.infer(&middle.url(), input)?;
        if said.code != 0 {
            return Err(failed("asking for an answer")(said.reason()));
        }
    }
    // A wrong input: an error, which is told inside.
    let said = site.infer(&middle.url(), &one[..8])?;
    if said.code == 0 {
        return Err(failed("asking for an error")("it was answered"));
    }
    let exchanges = middle.exchanges();
    let sizes = |which: fn(&(Request, Given)) -> usize| -> Vec<usize> {
        let mut sizes: Vec<usize> = exchanges.iter().map(which).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    };
    let requests = sizes(|(seen, _)| seen.body.len());
    let answers = sizes(|(_, given)| given.body.len());
    let of = |what: &str, sizes: &[usize]| match sizes {
        [one] => Ok(format!("{what} of {one} bytes")),
        several => Err(format!("{what} of {several:?} bytes")),
    };
    Ok(judge([
        of("requests", &requests),
        of("answers and errors", &answers),
    ]))
}

/// A request whose tensor is binary data, so that its length says nothing of its values.
pub(super) fn request(values: &[f32]) -> Request {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let head = serde_json::json!({
        "inputs": [{
            "name": model::INPUT, "datatype": "FP32", "shape": [1, values.len()],
            "parameters": {"binary_data_size": data.len()},
        }],
        "parameters": {"binary_data_output": true},
    })
    .to_string();
    let length = head.len().to_string();
    let path = format!("/v2/models/{MODEL}/infer");
    let body = [head.into_bytes(), data].concat();
    let mut request = Request::new("POST", &path, "application/octet-stream", body);
    let begins = "inference-header-content-length".to_owned();
    request.fields.push((begins, length));
    request
}
