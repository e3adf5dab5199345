//! Collecting a quote inside an enclave under Gramine, which offers it as files
//! (Gramine's documentation, "Attestation and Secret Provisioning").

use std::fs;
use std::io::Write;

use super::verify::Body;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind};

/// Takes the binding.
const USER_REPORT_DATA: &str = "/dev/attestation/user_report_data";

/// Gives the quote over it.
const QUOTE: &str = "/dev/attestation/quote";

/// Whether this process can ask for a quote.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    if machine.path(USER_REPORT_DATA).exists() {
        return Ok(());
    }
    Err(CollectError::NotPresent {
        tee: TeeKind::Sgx,
        missing: format!(
            "{USER_REPORT_DATA} is not there: Gramine shows it where its manifest has sgx.remote_attestation = \"dcap\""
        ),
    })
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    check_present(machine)?;
    let io = |path: &std::path::Path| {
        let path = path.to_owned();
        move |source| CollectError::Io { path, source }
    };
    let path = machine.path(USER_REPORT_DATA);
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(binding.as_bytes()))
        .map_err(io(&path))?;
    let path = machine.path(QUOTE);
    let quote = fs::read(&path).map_err(io(&path))?;
    Ok(evidence_of_quote(&quote))
}

/// Evidence from a quote's bytes.
///
/// # Panics
/// Never: text has a JSON form.
#[must_use]
pub fn evidence_of_quote(quote: &[u8]) -> Evidence {
    let body = serde_json::to_value(Body::of_quote(quote));
    Evidence::new(TeeKind::Sgx, body.expect("a quote has a JSON form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_is_asked_for_with_the_whole_binding() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        fs::create_dir_all(machine.path("/dev/attestation")).unwrap();
        fs::write(machine.path(USER_REPORT_DATA), b"").unwrap();
        fs::write(machine.path(QUOTE), b"a quote").unwrap();
        let binding = Binding::from([0x5a; 64]);
        let evidence = collect(&machine, &binding).unwrap();
        assert_eq!(evidence, evidence_of_quote(b"a quote"));
        assert_eq!(evidence.body()["quote"], "YSBxdW90ZQ==");
        let written = fs::read(machine.path(USER_REPORT_DATA)).unwrap();
        assert_eq!(written, binding.as_bytes());
    }

    #[test]
    fn a_process_outside_of_an_enclave_says_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let error = collect(&Machine::at(root.path()), &Binding::from([1; 64])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this is no sgx: /dev/attestation/user_report_data is not there: Gramine shows it \
             where its manifest has sgx.remote_attestation = \"dcap\""
        );
    }
}
