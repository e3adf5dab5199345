//! What an operator with `grep` would find.

use std::collections::HashSet;

/// Length of the pieces that are searched for.
const WINDOW: usize = 16;
/// Windows with fewer distinct bytes than this say nothing: zeros, padding.
const DISTINCT: usize = 7;
/// Shorter names are words that occur everywhere.
const SHORTEST_NAME: usize = 8;

/// Secrets, cut into every window of 16 bytes.
#[derive(Debug)]
pub struct Secrets {
    windows: HashSet<[u8; WINDOW]>,
    names: Vec<String>,
}

impl Secrets {
    /// Of some bytes, and names.
    ///
    /// # Panics
    /// Never: windows have one length.
    pub fn new<'a>(bytes: impl IntoIterator<Item = &'a [u8]>, names: &[String]) -> Self {
        let windows = bytes
            .into_iter()
            .flat_map(|secret| secret.windows(WINDOW))
            .map(|window| <[u8; WINDOW]>::try_from(window).expect("a window has 16 bytes"))
            .filter(|window| window.iter().collect::<HashSet<_>>().len() >= DISTINCT)
            .collect();
        let names = names
            .iter()
            .filter(|name| name.len() >= SHORTEST_NAME)
            .cloned()
            .collect();
        Self { windows, names }
    }

    /// Where a secret stands in `bytes`: its offset, and its name if it is one.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<(usize, Option<&str>)> {
        let window = bytes.windows(WINDOW).position(|window| {
            <[u8; WINDOW]>::try_from(window).is_ok_and(|window| self.windows.contains(&window))
        });
        if let Some(offset) = window {
            return Some((offset, None));
        }
        self.names.iter().find_map(|name| {
            let offset = bytes
                .windows(name.len())
                .position(|window| window == name.as_bytes())?;
            Some((offset, Some(name.as_str())))
        })
    }

    /// How many windows and names are searched for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is a count for people")]
    pub fn len(&self) -> usize {
        self.windows.len() + self.names.len()
    }
}
