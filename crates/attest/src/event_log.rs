//! Event logs of a measured boot: what was measured, one entry after the other
//! ("TCG PC Client Platform Firmware Profile", revision 1.06, section 10.4).
//!
//! The log itself is anybody's word. It counts where replaying it gives the registers
//! that evidence carries, and then only as far as its digests go: the text of an entry
//! is not covered by them in general.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::VerifyError;

/// The most entries that are read. A boot of a large Linux measures some hundreds.
const MAX_EVENTS: usize = 16 * 1024;

/// The most algorithms that an entry has digests of; TPMs have three or four banks.
const MAX_ALGORITHMS: usize = 8;

/// An entry that is told and not measured.
const EV_NO_ACTION: u32 = 3;

/// What begins the text of an entry that says at which locality the firmware started.
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// A hash of the TCG's registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Algorithm {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    pub(crate) fn from_tcg(id: u16) -> Option<Self> {
        Some(match id {
            0x0004 => Self::Sha1,
            0x000b => Self::Sha256,
            0x000c => Self::Sha384,
            0x000d => Self::Sha512,
            _ => return None,
        })
    }

    /// SHA-1 banks are read over and never replayed: two logs can have one digest.
    fn extended(self, register: &[u8], digest: &[u8]) -> Option<Vec<u8>> {
        let both = [register, digest].concat();
        Some(match self {
            Self::Sha1 => return None,
            Self::Sha256 => Sha256::digest(both).to_vec(),
            Self::Sha384 => Sha384::digest(both).to_vec(),
            Self::Sha512 => Sha512::digest(both).to_vec(),
        })
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) register: u32,
    pub(crate) kind: u32,
    pub(crate) digests: BTreeMap<Algorithm, Vec<u8>>,
    pub(crate) data: Vec<u8>,
}

/// A log, not replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventLog {
    pub(crate) events: Vec<Event>,
}

impl EventLog {
    /// Reads a log up to its end, or to where its area is filled with `ff`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        let mut reader = Reader { bytes, at: 0 };
        let sizes = reader.header()?;
        let mut events = Vec::new();
        while !reader.is_at_end() {
            if events.len() == MAX_EVENTS {
                return Err(reader.malformed(format!("more than {MAX_EVENTS} entries")));
            }
            events.push(reader.event(&sizes)?);
        }
        Ok(Self { events })
    }

    /// The registers that the log leads to, for each that it has an entry of. `None` for
    /// SHA-1, or if an entry has no digest of that algorithm.
    pub(crate) fn replay(&self, algorithm: Algorithm) -> Option<BTreeMap<u32, Vec<u8>>> {
        let mut registers: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut locality = 0;
        for event in &self.events {
            if event.kind == EV_NO_ACTION {
                if let Some([found]) = event.data.strip_prefix(STARTUP_LOCALITY) {
                    locality = *found;
                }
                continue;
            }
            let digest = event.digests.get(&algorithm)?;
            let register = registers.entry(event.register).or_insert_with(|| {
                let mut zero = vec![0; digest.len()];
                // Register 0 begins with the locality that the firmware started at.
                if event.register == 0 {
                    zero[digest.len() - 1] = locality;
                }
                zero
            });
            *register = algorithm.extended(register, digest)?;
        }
        Some(registers)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Bytes of each algorithm's digest, as the log's first entry says.
type Sizes = BTreeMap<u16, usize>;

impl<'a> Reader<'a> {
    /// The first entry, in an older form, says which algorithms the others have.
    fn header(&mut self) -> Result<Sizes, VerifyError> {
        // TPM logs have register 0 here, those of confidential machines register 1.
        let (_, kind) = (self.number()?, self.number()?);
        self.take(20)?;
        let length = self.number()?;
        let mut text = Reader {
            bytes: self.take(length as usize)?,
            at: 0,
        };
        if kind != EV_NO_ACTION || text.take(16)? != b"Spec ID Event03\0" {
            return Err(self.malformed("it does not begin with a Spec ID event"));
        }
        text.take(8)?;
        let count = text.number()? as usize;
        if count > MAX_ALGORITHMS {
            return Err(self.malformed(format!("{count} algorithms")));
        }
        let mut sizes = Sizes::new();
        for _ in 0..count {
            sizes.insert(text.short()?, usize::from(text.short()?));
        }
        Ok(sizes)
    }

    fn event(&mut self, sizes: &Sizes) -> Result<Event, VerifyError> {
        let (register, kind) = (self.number()?, self.number()?);
        let count = self.number()? as usize;
        if count > MAX_ALGORITHMS {
            return Err(self.malformed(format!("an entry with {count} digests")));
        }
        let mut digests = BTreeMap::new();
        for _ in 0..count {
            let id = self.short()?;
            let size = sizes
                .get(&id)
                .ok_or_else(|| self.malformed(format!("a digest of algorithm {id:#06x}")))?;
            let digest = self.take(*size)?.to_vec();
            if let Some(algorithm) = Algorithm::from_tcg(id) {
                digests.insert(algorithm, digest);
            }
        }
        let length = self.number()?;
        let data = self.take(length as usize)?.to_vec();
        Ok(Event {
            register,
            kind,
            digests,
            data,
        })
    }

    fn is_at_end(&self) -> bool {
        let rest = &self.bytes[self.at..];
        rest.is_empty() || rest.iter().all(|byte| *byte == 0xff)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], VerifyError> {
        let taken = self
            .at
            .checked_add(length)
            .and_then(|end| self.bytes.get(self.at..end))
            .ok_or_else(|| self.malformed(format!("{length} more bytes were announced")))?;
        self.at += length;
        Ok(taken)
    }

    fn short(&mut self) -> Result<u16, VerifyError> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn number(&mut self) -> Result<u32, VerifyError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn malformed(&self, what: impl std::fmt::Display) -> VerifyError {
        VerifyError::Malformed {
            reason: format!("the event log at byte {}: {what}", self.at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(algorithms: &[(u16, u16)]) -> Vec<u8> {
        let mut text = b"Spec ID Event03\0".to_vec();
        text.extend([0; 8]);
        text.extend((algorithms.len() as u32).to_le_bytes());
        for (id, size) in algorithms {
            text.extend(id.to_le_bytes());
            text.extend(size.to_le_bytes());
        }
        text.push(0);
        let mut bytes = [0_u32.to_le_bytes(), 3_u32.to_le_bytes()].concat();
        bytes.extend([0; 20]);
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text);
        bytes
    }

    fn event(register: u32, kind: u32, digests: &[(u16, &[u8])], data: &[u8]) -> Vec<u8> {
        let mut bytes = register.to_le_bytes().to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend((digests.len() as u32).to_le_bytes());
        for (id, digest) in digests {
            bytes.extend(id.to_le_bytes());
            bytes.extend(*digest);
        }
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        bytes
    }

    const BOTH: &[(u16, u16)] = &[(0x0b, 32), (0x0c, 48)];

    #[test]
    fn a_register_is_the_hash_of_what_it_was_and_of_each_digest() {
        let (first, second) = ([1; 32], [2; 32]);
        let digests = |digest: &'static [u8; 32]| [(0x0b, &digest[..]), (0x0c, &[9; 48][..])];
        let mut log = header(BOTH);
        log.extend(event(4, 8, &digests(&[1; 32]), b"kernel"));
        log.extend(event(4, 8, &digests(&[2; 32]), b"initrd"));
        log.extend([0xff; 100]);
        let log = EventLog::parse(&log).unwrap();
        assert_eq!(log.events.len(), 2);
        let once = Sha256::digest([[0; 32], first].concat());
        let twice = Sha256::digest([&once[..], &second].concat());
        let replayed = log.replay(Algorithm::Sha256).unwrap();
        assert_eq!(replayed, BTreeMap::from([(4, twice.to_vec())]));
        assert_eq!(log.replay(Algorithm::Sha512), None);
        assert_eq!(log.replay(Algorithm::Sha1), None);
    }

    #[test]
    fn what_is_told_is_not_measured_but_for_the_locality_that_register_0_begins_with() {
        let mut log = header(BOTH);
        log.extend(event(0, 3, &[(0x0b, &[7; 32])], b"StartupLocality\0\x03"));
        log.extend(event(0, 8, &[(0x0b, &[1; 32])], b""));
        log.extend(event(1, 8, &[(0x0b, &[1; 32])], b""));
        let replayed = EventLog::parse(&log)
            .unwrap()
            .replay(Algorithm::Sha256)
            .unwrap();
        let mut begins = [0; 64];
        begins[32..].fill(1);
        assert_eq!(replayed[&1], Sha256::digest(begins).to_vec());
        begins[31] = 3;
        assert_eq!(replayed[&0], Sha256::digest(begins).to_vec());
    }

    fn reason(bytes: &[u8]) -> String {
        match EventLog::parse(bytes).unwrap_err() {
            VerifyError::Malformed { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_malformation_is_told_with_its_place() {
        let good = [header(BOTH), event(1, 8, &[(0x0b, &[1; 32])], b"data")].concat();
        EventLog::parse(&good).unwrap();
        let start = header(BOTH).len();
        assert_eq!(
            reason(b""),
            "the event log at byte 0: 4 more bytes were announced"
        );
        let mut other = good.clone();
        other[32] ^= 1;
        assert_eq!(
            reason(&other),
            format!("the event log at byte {start}: it does not begin with a Spec ID event")
        );
        let many: Vec<_> = (0..9).map(|id| (id, 1)).collect();
        assert_eq!(
            reason(&header(&many)),
            format!(
                "the event log at byte {}: 9 algorithms",
                header(&many).len()
            )
        );
        let unknown = [header(BOTH), event(1, 8, &[(0x12, &[1; 32])], b"")].concat();
        assert_eq!(
            reason(&unknown),
            format!(
                "the event log at byte {}: a digest of algorithm 0x0012",
                start + 14
            )
        );
        let digests: Vec<(u16, &[u8])> = vec![(0x0b, &[1; 32]); 9];
        let crowded = [header(BOTH), event(1, 8, &digests, b"")].concat();
        assert_eq!(
            reason(&crowded),
            format!(
                "the event log at byte {}: an entry with 9 digests",
                start + 12
            )
        );
        for length in (0..good.len()).filter(|length| *length != start) {
            assert!(EventLog::parse(&good[..length]).is_err(), "{length}");
        }
        let mut huge = good;
        let length = start + 12 + 2 + 32;
        huge[length..length + 4].copy_from_slice(&[0xff; 4]);
        assert_eq!(
            reason(&huge),
            format!(
                "the event log at byte {}: 4294967295 more bytes were announced",
                length + 4
            )
        );
    }

    #[test]
    fn more_entries_than_any_boot_has_are_refused() {
        let mut log = header(BOTH);
        let one = event(1, 8, &[], b"");
        log.extend(one.repeat(MAX_EVENTS));
        assert_eq!(EventLog::parse(&log).unwrap().events.len(), MAX_EVENTS);
        log.extend(&one);
        assert!(reason(&log).ends_with("more than 16384 entries"));
    }
}
