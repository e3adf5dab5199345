//! Waiting for what another thread has begun.

use std::time::Duration;

/// How often a waiting thread looks before it lets others have its core.
const LOOKS: u32 = 1_000;

/// How often it looks after that, before it sleeps between looks.
const YIELDS: u32 = 100;

/// How long it sleeps.
const NAP: Duration = Duration::from_micros(50);

/// A thread that looks again and again whether it need wait any longer: at first without
/// giving its core away, since threads that share a layer wait for microseconds; and less and
/// less often, since what it waits for may itself wait, for a disk.
#[derive(Debug, Default)]
pub struct Patience {
    looks: u32,
}

impl Patience {
    /// Between two looks.
    pub fn wait(&mut self) {
        if self.looks < LOOKS {
            std::hint::spin_loop();
        } else if self.looks < LOOKS + YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP);
        }
        self.looks = self.looks.saturating_add(1);
    }
}
