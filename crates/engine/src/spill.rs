//! Where streamed weights lie, encrypted, while a model runs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytesize::ByteSize;
use occlude_spill::{
    CipherKind, DEFAULT_READ_AHEAD, DirectStore, LEAST_READ_AHEAD, MappedStore, Mirror, Store,
};

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
    Direct {
        /// The folder.
        folder: PathBuf,
        /// Bytes of protected memory that each session reads ahead into.
        read_ahead: usize,
    },
}

/// A text that says no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownSpill {
    /// Of no kind.
    #[error("{found:?} is neither shared nor direct:FOLDER")]
    Place {
        /// The text.
        found: String,
    },
    /// A file that would be read ahead into too little, or too much to count.
    #[error(
        "{found:?} is no size to read ahead into; expected {} to {}, such as \
         direct:FOLDER,read-ahead=64MiB",
        ByteSize(LEAST_READ_AHEAD as u64),
        ByteSize(MOST_READ_AHEAD as u64)
    )]
    ReadAhead {
        /// The size's text.
        found: String,
    },
}

/// More bytes than any machine has for it.
const MOST_READ_AHEAD: usize = 1 << 40;

/// What stands between a folder and how much is read ahead.
const READ_AHEAD: &str = ",read-ahead=";

impl FromStr for Spill {
    type Err = UnknownSpill;

    fn from_str(text: &str) -> Result<Self, UnknownSpill> {
        let unknown = || UnknownSpill::Place {
            found: text.to_owned(),
        };
        if text == "shared" {
            return Ok(Self::SharedMemory);
        }
        let place = text.strip_prefix("direct:").ok_or_else(unknown)?;
        let (folder, read_ahead) = match place.rsplit_once(READ_AHEAD) {
            Some((folder, size)) => {
                let bytes = size.parse::<ByteSize>().ok();
                let bytes = bytes.and_then(|size| usize::try_from(size.as_u64()).ok());
                let bytes =
                    bytes.filter(|bytes| (LEAST_READ_AHEAD..=MOST_READ_AHEAD).contains(bytes));
                let found = size.to_owned();
                (folder, bytes.ok_or(UnknownSpill::ReadAhead { found })?)
            }
            None => (place, DEFAULT_READ_AHEAD),
        };
        if folder.is_empty() {
            return Err(unknown());
        }
        Ok(Self::Direct {
            folder: folder.into(),
            read_ahead,
        })
    }
}

impl fmt::Display for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedMemory => f.write_str("shared"),
            Self::Direct { folder, read_ahead } => {
                write!(f, "direct:{}", folder.display())?;
                if *read_ahead != DEFAULT_READ_AHEAD {
                    write!(f, "{READ_AHEAD}{read_ahead}")?;
                }
                Ok(())
            }
        }
    }
}

impl Spill {
    /// A file in `folder`, of which as much is read ahead as is usual.
    pub fn direct(folder: impl Into<PathBuf>) -> Self {
        Self::Direct {
            folder: folder.into(),
            read_ahead: DEFAULT_READ_AHEAD,
        }
    }

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
            Self::Direct { folder, read_ahead } => {
                let store = DirectStore::mirrored(kind, folder, mirror, layers, context);
                Arc::new(store.map_err(io::Error::other)?.reading_ahead(*read_ahead))
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
            ("direct:/var/lib/occlude", Spill::direct("/var/lib/occlude")),
            ("direct:a:b", Spill::direct("a:b")),
            (
                "direct:/a,b,read-ahead=50331648",
                Spill::Direct {
                    folder: "/a,b".into(),
                    read_ahead: 48 << 20,
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(spill.clone()));
            assert_eq!(spill.to_string(), text);
        }
        for text in [
            "",
            "direct",
            "direct:",
            "direct:,read-ahead=64MiB",
            "shared:x",
            "mapped",
        ] {
            let found = text.to_owned();
            assert_eq!(text.parse::<Spill>(), Err(UnknownSpill::Place { found }));
        }
    }

    #[test]
    fn what_is_read_ahead_has_a_size_that_does() {
        for (size, bytes) in [
            ("4MiB", 4 << 20),
            ("64MiB", 64 << 20),
            ("16777216", 16 << 20),
            ("1TiB", 1 << 40),
        ] {
            let expected = Spill::Direct {
                folder: "/var/tmp".into(),
                read_ahead: bytes,
            };
            assert_eq!(
                format!("direct:/var/tmp,read-ahead={size}").parse(),
                Ok(expected)
            );
        }
        for size in ["", "4MB", "much", "-1", "1.1TiB", "99999999999999999999"] {
            let parsed = format!("direct:/var/tmp,read-ahead={size}").parse::<Spill>();
            let found = size.to_owned();
            assert_eq!(parsed, Err(UnknownSpill::ReadAhead { found }));
        }
        let error = "direct:/var/tmp,read-ahead=1MiB".parse::<Spill>();
        assert_eq!(
            error.unwrap_err().to_string(),
            "\"1MiB\" is no size to read ahead into; expected 4.0 MiB to 1.0 TiB, such as \
             direct:FOLDER,read-ahead=64MiB"
        );
    }
}
