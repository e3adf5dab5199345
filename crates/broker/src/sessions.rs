//! Challenges and sessions, in memory only: a broker that restarts has none.
//!
//! Whoever reaches the broker can ask for challenges without end, so their number
//! is bounded and the oldest goes first. A challenge is for one use: it is taken
//! out before the evidence is looked at, so that no second try is made on it.
//! Times are those of the monotonic clock; setting a clock back revives nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::random;

/// How long a challenge can be answered.
pub(crate) const CHALLENGE_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How long a key can be asked for after evidence was accepted. A server asks at
/// once, and shows new evidence for each renewal.
pub(crate) const SESSION_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Open challenges, and as many attested sessions: some megabytes of memory.
const MOST: usize = 4096;

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
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            most: MOST,
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Keeps a value under a fresh secret of 64 hexadecimal digits.
    pub(crate) fn insert(&mut self, value: T, now: Instant) -> String {
        let secret = hex::encode(random::<32>());
        self.insert_under(&secret, value, now);
        secret
    }

    pub(crate) fn insert_under(&mut self, secret: &str, value: T, now: Instant) {
        while let Some((made, name)) = self.order.front().copied() {
            let current = self
                .values
                .get(&name)
                .is_some_and(|(kept, _)| *kept == made);
            let expired = now.duration_since(made) >= self.lifetime;
            if current && !expired && self.values.len() < self.most {
                break;
            }
            self.order.pop_front();
            if current {
                self.values.remove(&name);
            }
        }
        let name = Sha256::digest(secret).into();
        self.values.insert(name, (now, value));
        self.order.push_back((now, name));
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
        let mut values = Expiring::new(LIFETIME);
        let now = Instant::now();
        let secret = values.insert(7, now);
        assert_eq!(values.take("another", now), None);
        assert_eq!(values.take(&secret, now), Some(7));
        assert_eq!(values.take(&secret, now), None);
    }

    #[test]
    fn a_value_expires() {
        let mut values = Expiring::new(LIFETIME);
        let now = Instant::now();
        let secret = values.insert(7, now);
        let before = now + LIFETIME - Duration::from_millis(1);
        assert_eq!(values.get(&secret, before), Some(&7));
        assert_eq!(values.get(&secret, now + LIFETIME), None);
        assert_eq!(values.take(&secret, now + LIFETIME), None);
    }

    #[test]
    fn the_oldest_goes_first_and_their_number_is_bounded() {
        let mut values = Expiring::new(LIFETIME);
        values.most = 3;
        let now = Instant::now();
        let secrets: Vec<String> = (0..5).map(|number| values.insert(number, now)).collect();
        let kept: Vec<_> = secrets
            .iter()
            .map(|secret| values.get(secret, now).copied())
            .collect();
        assert_eq!(kept, [None, None, Some(2), Some(3), Some(4)]);
        for number in 0..100 {
            let secret = values.insert(number, now);
            values.take(&secret, now);
        }
        assert!(values.order.len() <= 200, "{}", values.order.len());
        values.insert(0, now + LIFETIME);
        assert_eq!((values.values.len(), values.order.len()), (1, 1));
    }
}
