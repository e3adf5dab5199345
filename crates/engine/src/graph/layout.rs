//! Values in the blocked layout.

use super::draft::Draft;

/// Not yet.
pub(super) fn block(_draft: &mut Draft, _block: u64) {}
