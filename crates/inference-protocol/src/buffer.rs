//! A growing buffer that leaves no copy of its contents behind when it moves.
//!
//! `Vec` frees its old allocation without wiping it when it grows; tensors are
//! the users' secrets, so this one copies into a larger buffer and wipes the
//! old one.

use std::io;

use zeroize::Zeroizing;

/// Bytes that are wiped on drop and on growth.
pub(crate) struct WipingBuffer(Zeroizing<Vec<u8>>);

impl WipingBuffer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.max(self.0.capacity() * 2));
            larger.extend_from_slice(&self.0);
            self.0 = Zeroizing::new(larger);
        }
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_inner(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl io::Write for WipingBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_the_contents() {
        let mut buffer = WipingBuffer::with_capacity(1);
        let expected: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for piece in expected.chunks(7) {
            buffer.push(piece);
        }
        assert_eq!(*buffer.into_inner(), expected);
    }
}
