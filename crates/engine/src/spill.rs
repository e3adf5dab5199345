//! Where streamed weights lie, encrypted, while a model runs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use occlude_spill::{CipherKind, DirectStore, MappedStore, Mirror, Store};

/// Where streamed weights lie. Either way only ciphertext does, which the host may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spill {
    /// In anonymous shared memory, where that does not count as protected memory: outside
    /// of an enclave.
    #[default]
    SharedMemory,
    /// In an unnamed file in this folder, read and written past the page cache: in a
    /// confidential virtual machine all memory is protected, the page cache too.
    Direct(PathBuf),
}

/// A text that says no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is neither shared nor direct:FOLDER")]
pub struct UnknownSpill {
    /// The text.
    pub found: String,
}

impl FromStr for Spill {
    type Err = UnknownSpill;

    fn from_str(text: &str) -> Result<Self, UnknownSpill> {
        match text.split_once(':') {
            Some(("direct", folder)) if !folder.is_empty() => Ok(Self::Direct(folder.into())),
            None if text == "shared" => Ok(Self::SharedMemory),
            _ => Err(UnknownSpill {
                found: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedMemory => f.write_str("shared"),
            Self::Direct(folder) => write!(f, "direct:{}", folder.display()),
        }
    }
}

impl Spill {
    /// A store for the panels of these lengths, layer by layer, of the model that
    /// `context` names. What is in memory has no mirror.
    pub(crate) fn store(
        &self,
        kind: CipherKind,
        layers: &[Vec<usize>],
        context: [u8; 32],
        mirror: Option<&Mirror>,
    ) -> io::Result<Arc<dyn Store>> {
        Ok(match self {
            Self::SharedMemory => {
                let panels = layers.iter().flatten();
                let length = panels.map(|&length| MappedStore::room_for(length)).sum();
                Arc::new(MappedStore::new(kind, length, context)?)
            }
            Self::Direct(folder) => {
                let store = DirectStore::mirrored(kind, folder, mirror, layers, context);
                Arc::new(store.map_err(io::Error::other)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_it_is_written() {
        for (text, spill) in [
            ("shared", Spill::SharedMemory),
            (
                "direct:/var/lib/occlude",
                Spill::Direct("/var/lib/occlude".into()),
            ),
            ("direct:a:b", Spill::Direct("a:b".into())),
        ] {
            assert_eq!(text.parse(), Ok(spill.clone()));
            assert_eq!(spill.to_string(), text);
        }
        for text in ["", "direct", "direct:", "shared:x", "mapped"] {
            let found = text.to_owned();
            assert_eq!(text.parse::<Spill>(), Err(UnknownSpill { found }));
        }
    }
}
