//! Challenges and sessions, in memory only: a broker that restarts has none.
//!
//! Whoever reaches the broker can ask for challenges without end, so their number
//! is bounded. At the bound no further one is given until others expire: nobody can
//! push out a challenge that an honest server or an owner is about to answer. A
//! challenge is for one use: it is taken out before the evidence is looked at, so
//! that no second try is made on it.
//! Times are those of the monotonic clock; setting a clock back revives nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::random;

/// How long a challenge can be answered. Evidence takes seconds to collect; the
/// shorter this is, the faster strangers must ask to keep [`MOST_CHALLENGES`] open.
pub(crate) const CHALLENGE_LIFETIME: Duration = Duration::from_secs(60);
/// How long a key can be asked for after evidence was accepted. A server asks at
/// once, and shows new evidence for each renewal.
pub(crate) const SESSION_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Open challenges of one sort: some 20 MB of memory, and over a thousand requests
/// each second to keep them all taken.
pub(crate) const MOST_CHALLENGES: usize = 65_536;
/// Names of attested sessions, two each, with claims of some kilobytes. Only evidence
/// that holds gets there.
pub(crate) const MOST_SESSIONS: usize = 8192;

/// There are as many as there may be, and none has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Values that go by a secret, each for a limited time.
#[derive(Debug)]
pub(crate) struct Expiring<T> {
    lifetime: Duration,
    most: usize,
    /// By the secret's SHA-256, so that looking one up takes no time that tells
    /// anything about the others.
    values: HashMap<[u8; 32], (Instant, T)>,
    /// Oldest first; what was taken is skipped.
    order: VecDeque<(Instant, [u8; 32])>,
}

impl<T> Expiring<T> {
    pub(crate) fn new(lifetime: Duration, most: usize) -> Self {
        Self {
            lifetime,
            most,
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Keeps a value under a fresh secret of 64 hexadecimal digits.
    pub(crate) fn insert(&mut self, value: T, now: Instant) -> Result<String, Full> {
        let secret = hex::encode(random::<32>());
        self.insert_under(&secret, value, now)?;
        Ok(secret)
    }

    pub(crate) fn insert_under(
        &mut self,
        secret: &str,
        value: T,
        now: Instant,
    ) -> Result<(), Full> {
        self.expire(now);
        if self.values.len() >= self.most {
            return Err(Full);
        }
        let name = Sha256::digest(secret).into();
        self.values.insert(name, (now, value));
        self.order.push_back((now, name));
        Ok(())
    }

    /// Drops what has expired.
    fn expire(&mut self, now: Instant) {
        let Self { values, order, .. } = self;
        let current = |made: Instant, name: &[u8; 32]| {
            values.get(name).is_some_and(|(kept, _)| *kept == made)
        };
        // What was taken leaves its place in the order behind.
        if order.len() >= 2 * self.most {
            order.retain(|(made, name)| current(*made, name));
        }
        while let Some((made, name)) = order.front().copied() {
            let kept = values.get(&name).is_some_and(|(kept, _)| *kept == made);
            if kept && now.duration_since(made) < self.lifetime {
                break;
            }
            order.pop_front();
            if kept {
                values.remove(&name);
            }
        }
    }

    /// Takes a value out, if it has not expired.
    pub(crate) fn take(&mut self, secret: &str, now: Instant) -> Option<T> {
        let name: [u8; 32] = Sha256::digest(secret).into();
        let (made, value) = self.values.remove(&name)?;
        (now.duration_since(made) < self.lifetime).then_some(value)
    }

    /// Looks at a value, if it has not expired.
    pub(crate) fn get(&self, secret: &str, now: Instant) -> Option<&T> {
        let name: [u8; 32] = Sha256::digest(secret).into();
        let (made, value) = self.values.get(&name)?;
        (now.duration_since(*made) < self.lifetime).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(10);

    #[test]
    fn a_value_is_taken_once() {
        let mut values = Expiring::new(LIFETIME, 3);
        let now = Instant::now();
        let secret = values.insert(7, now).unwrap();
        assert_eq!(values.take("another", now), None);
        assert_eq!(values.take(&secret, now), Some(7));
        assert_eq!(values.take(&secret, now), None);
    }

    #[test]
    fn a_value_expires() {
        let mut values = Expiring::new(LIFETIME, 3);
        let now = Instant::now();
        let secret = values.insert(7, now).unwrap();
        let before = now + LIFETIME - Duration::from_millis(1);
        assert_eq!(values.get(&secret, before), Some(&7));
        assert_eq!(values.get(&secret, now + LIFETIME), None);
        assert_eq!(values.take(&secret, now + LIFETIME), None);
    }

    #[test]
    fn none_is_pushed_out_and_their_number_is_bounded() {
        let mut values = Expiring::new(LIFETIME, 3);
        let now = Instant::now();
        let secrets: Vec<String> = (0..3)
            .map(|number| values.insert(number, now).unwrap())
            .collect();
        assert_eq!(values.insert(3, now), Err(Full));
        let kept: Vec<_> = secrets
            .iter()
            .map(|secret| values.get(secret, now).copied())
            .collect();
        assert_eq!(kept, [Some(0), Some(1), Some(2)]);
        assert_eq!(values.take(&secrets[1], now), Some(1));
        values.insert(3, now).unwrap();
        assert_eq!(values.insert(4, now), Err(Full));
        values.insert(4, now + LIFETIME).unwrap();
        assert_eq!((values.values.len(), values.order.len()), (1, 1));
    }

    #[test]
    fn what_was_taken_leaves_no_memory_behind() {
        let mut values = Expiring::new(LIFETIME, 3);
        let now = Instant::now();
        let first = values.insert(0, now).unwrap();
        for number in 0..100 {
            let secret = values.insert(number, now).unwrap();
            values.take(&secret, now);
            assert!(values.order.len() <= 6, "{}", values.order.len());
        }
        assert_eq!(values.get(&first, now), Some(&0));
    }
}
