//! What is looked at in each client's queries, and kept until the broker has it.
//!
//! Windows are kept in memory and end with this process: an operator who starts it again makes
//! a client's window begin anew, which the broker's log shows, as it shows every start. What a
//! client is throttled for is the broker's to keep, and stays.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use occlude_broker::{ClientDigest, Unusual, UsageReport};
use occlude_guard::Telemetry;
use occlude_inference_protocol::Tensor;
use occlude_usage::{Finding, Observation, Sketch, SketchKey, Window};
use tokio::time::Instant;

/// Clients that are looked at at once: who asked longest ago is forgotten for a new one.
const MOST_WATCHED: usize = 1024;

/// The clients of one loaded model.
pub(crate) struct Watch {
    telemetry: Telemetry,
    key: SketchKey,
    clients: Mutex<HashMap<ClientDigest, Client>>,
}

struct Client {
    asked: Instant,
    watched: Arc<tokio::sync::Mutex<Watched>>,
}

/// One client.
#[derive(Default)]
pub(super) struct Watched {
    window: Window,
    /// What the broker has to hear before the client gets another answer.
    pub(super) due: Option<UsageReport>,
    /// When it may be asked again to take that.
    pub(super) again: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(telemetry: Telemetry, key: SketchKey) -> Self {
        Self {
            telemetry,
            key,
            clients: Mutex::default(),
        }
    }

    /// What is kept of inputs, before a model consumes them; nothing where they are not looked
    /// at.
    pub(crate) fn sketches(&self, inputs: &[Tensor]) -> Vec<Sketch> {
        match self.telemetry.distances {
            Some(_) => self.key.sketches(inputs),
            None => Vec::new(),
        }
    }

    pub(super) fn client(&self, client: ClientDigest) -> Arc<tokio::sync::Mutex<Watched>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if !clients.contains_key(&client) && clients.len() >= MOST_WATCHED {
            // Who has something due is not forgotten, unless everybody has.
            let waits = |client: &Client| {
                let watched = client.watched.try_lock();
                watched.map_or(true, |watched| watched.due.is_some())
            };
            let oldest = clients
                .iter()
                .min_by_key(|(_, client)| (waits(client), client.asked))
                .map(|(digest, _)| *digest);
            clients.retain(|digest, _| Some(*digest) != oldest);
        }
        let asked = Instant::now();
        let entry = clients.entry(client).or_insert_with(|| Client {
            asked,
            watched: Arc::default(),
        });
        entry.asked = asked;
        Arc::clone(&entry.watched)
    }

    /// Takes in what was answered. A window that is full becomes a report.
    pub(super) fn see(&self, client: ClientDigest, watched: &mut Watched, seen: Vec<Observation>) {
        for observation in seen {
            watched.window.add(&self.telemetry, observation);
        }
        if watched.due.is_none() && watched.window.is_full(&self.telemetry) {
            let finding = watched.window.close(&self.telemetry);
            watched.due = Some(self.report(client, &finding));
        }
    }

    /// What of a finding leaves the TEE.
    fn report(&self, client: ClientDigest, finding: &Finding) -> UsageReport {
        let unusual = [
            (finding.uncertain_unusual, Unusual::Uncertain),
            (finding.distances_unusual, Unusual::Distances),
        ];
        let unusual = unusual.into_iter().filter(|(found, _)| *found);
        UsageReport {
            client,
            queries: finding.queries,
            uncertain: finding.uncertain,
            unusual: unusual.map(|(_, what)| what).collect(),
            throttle_seconds: self.telemetry.throttle_seconds,
        }
    }
}
