//! Collecting a quote inside the guest, through configfs-tsm, with the event log that
//! the firmware left in memory and the kernel shows as an ACPI table's data.

use super::verify::Body;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind, tsm};

/// What the kernel calls the provider of quotes.
const PROVIDER: &str = "tdx_guest";

/// The event log ("ACPI Specification", 6.5, section 5.2.34: CC event log table).
const EVENT_LOG: &str = "/sys/firmware/acpi/tables/data/CCEL";

/// The longest event log that is sent along. The area that firmware reserves is larger,
/// and filled with `ff` behind the log.
const MAX_LOG_BYTES: usize = 128 * 1024;

/// Whether this machine can be asked for a quote.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    tsm::check_present(machine, TeeKind::Tdx)
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    check_present(machine)?;
    let collected = tsm::collect(machine, PROVIDER, binding)?;
    // Without a log the quote says the same, entry by entry unexplained.
    let log = std::fs::read(machine.path(EVENT_LOG)).ok();
    let log = log.as_deref().map(trimmed);
    let log = log.filter(|log| log.len() <= MAX_LOG_BYTES);
    Ok(evidence_of_quote(&collected.report, log))
}

fn trimmed(log: &[u8]) -> &[u8] {
    let end = log.iter().rposition(|byte| *byte != 0xff);
    &log[..end.map_or(0, |end| end + 1)]
}

/// Evidence from a quote's bytes and, if there is one, the event log's.
///
/// # Panics
/// Never: text has a JSON form.
#[must_use]
pub fn evidence_of_quote(quote: &[u8], event_log: Option<&[u8]>) -> Evidence {
    let body = serde_json::to_value(Body::of_quote(quote, event_log));
    Evidence::new(TeeKind::Tdx, body.expect("a quote has a JSON form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_log_is_sent_without_what_fills_its_area() {
        assert_eq!(trimmed(b"log\xff\xff\xff"), b"log");
        assert_eq!(trimmed(b"\xff\xff"), b"");
        assert_eq!(trimmed(b"log"), b"log");
    }

    #[test]
    fn a_machine_without_the_interface_says_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let error = collect(&Machine::at(root.path()), &Binding::from([1; 64])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this is no tdx: /sys/kernel/config/tsm/report is not there"
        );
    }
}
