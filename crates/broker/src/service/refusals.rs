//! Refusals of strangers, of which only so many go to the audit log.
//!
//! Whoever reaches the broker can be refused without end and at no cost. Written
//! one by one, that would fill the disk, and with it the log that grants wait for.
//! So each minute the first are written, and the others counted; their number
//! becomes one entry.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Broker, lock};
use crate::audit::AuditEvent;
use crate::store::StoreError;

/// Refusals of one sort written one by one within a minute: more than a server
/// that is set up wrongly makes, and some 15 MB of log a day at the very worst.
pub(super) const WRITTEN_PER_MINUTE: u32 = 20;

const MINUTE: Duration = Duration::from_secs(60);

/// How many refusals of one sort there were.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The current minute's begin; `None` before the first refusal.
    since: Option<Instant>,
    written: u32,
    counted: u64,
}

/// What becomes of one refusal.
#[derive(Debug, PartialEq, Eq)]
struct Admission {
    /// Whether it is written by itself.
    written: bool,
    /// Earlier ones that were only counted, to be written now.
    counted: u64,
}

impl Refusals {
    fn admit(&mut self, now: Instant) -> Admission {
        let counted = self.counted_before(now);
        let current = self
            .since
            .is_some_and(|since| now.duration_since(since) < MINUTE);
        if !current {
            self.since = Some(now);
            self.written = 0;
        }
        let written = self.written < WRITTEN_PER_MINUTE;
        if written {
            self.written += 1;
        } else {
            if self.counted == 0 {
                tracing::warn!("many refusals without evidence: they are only counted from here");
            }
            self.counted += 1;
        }
        Admission { written, counted }
    }

    /// Takes what was counted, if its minute is over.
    fn counted_before(&mut self, now: Instant) -> u64 {
        match self.since {
            Some(since) if now.duration_since(since) >= MINUTE => std::mem::take(&mut self.counted),
            _ => 0,
        }
    }
}

impl Broker {
    /// Writes or counts the refusal of a request that showed no session, no
    /// evidence, or no signature of an owner who answers a challenge.
    pub(super) async fn record_stranger(&self, event: &AuditEvent) -> Result<(), StoreError> {
        self.admit(&self.strangers, event).await
    }

    /// Writes or counts the refusal of evidence that does not hold. Apart from the
    /// others, so that these cannot crowd it out at no cost.
    pub(super) async fn record_disbelief(&self, event: &AuditEvent) -> Result<(), StoreError> {
        self.admit(&self.disbelieved, event).await
    }

    async fn admit(
        &self,
        refusals: &Mutex<Refusals>,
        event: &AuditEvent,
    ) -> Result<(), StoreError> {
        let admission = lock(refusals).admit(Instant::now());
        self.write_count(admission.counted).await?;
        if admission.written {
            self.store.record(event).await?;
        }
        Ok(())
    }

    /// Writes what was counted in minutes that are over: for a reader of the log.
    pub(super) async fn write_counted(&self) -> Result<(), StoreError> {
        for refusals in [&self.strangers, &self.disbelieved] {
            let counted = lock(refusals).counted_before(Instant::now());
            self.write_count(counted).await?;
        }
        Ok(())
    }

    /// Writes all that was counted: a broker that ends forgets it otherwise.
    pub(crate) async fn write_folded(&self) -> Result<(), StoreError> {
        for refusals in [&self.strangers, &self.disbelieved] {
            let counted = std::mem::take(&mut lock(refusals).counted);
            self.write_count(counted).await?;
        }
        Ok(())
    }

    async fn write_count(&self, count: u64) -> Result<(), StoreError> {
        if count == 0 {
            return Ok(());
        }
        self.store
            .record(&AuditEvent::RefusalsWithoutEvidence { count })
            .await
            .inspect_err(|_| tracing::error!(count, "refusals were counted in vain"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_minute_the_first_are_written_and_the_others_counted() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let admissions = |refusals: &mut Refusals, now| -> Vec<Admission> {
            (0..WRITTEN_PER_MINUTE + 7)
                .map(|_| refusals.admit(now))
                .collect()
        };
        let first = admissions(&mut refusals, start);
        for (index, admission) in (0..).zip(&first) {
            assert_eq!(admission.written, index < WRITTEN_PER_MINUTE);
            assert_eq!(admission.counted, 0);
        }
        let last = start + MINUTE - Duration::from_millis(1);
        let expected = Admission {
            written: false,
            counted: 0,
        };
        assert_eq!(refusals.admit(last), expected);
        assert_eq!(refusals.counted_before(last), 0);
        let second = admissions(&mut refusals, start + MINUTE);
        let expected = Admission {
            written: true,
            counted: 8,
        };
        assert_eq!(second[0], expected);
        assert!(second[1..].iter().all(|admission| admission.counted == 0));
        assert_eq!(refusals.counted_before(start + 2 * MINUTE), 7);
        assert_eq!(refusals.counted_before(start + 3 * MINUTE), 0);
    }
}
