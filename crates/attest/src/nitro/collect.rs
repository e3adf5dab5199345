//! Collecting a document inside the enclave, from the Nitro Security Module.

use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_nitro_enclaves_nsm_api::driver;
use serde_bytes::ByteBuf;

use super::verify::Body;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind};

/// The module's device.
const DEVICE: &str = "/dev/nsm";

/// Whether this process can ask for a document.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    if machine.path(DEVICE).exists() {
        return Ok(());
    }
    Err(CollectError::NotPresent {
        tee: TeeKind::Nitro,
        missing: format!("{DEVICE} is not there"),
    })
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    check_present(machine)?;
    let device = driver::nsm_init();
    let evidence = exchange(binding, |request| {
        driver::nsm_process_request(device, request)
    });
    driver::nsm_exit(device);
    evidence.map_err(|source| CollectError::Io {
        path: machine.path(DEVICE),
        source,
    })
}

/// Asks for a document over `binding`, which is its user data.
fn exchange(
    binding: &Binding,
    device: impl FnOnce(Request) -> Response,
) -> std::io::Result<Evidence> {
    let request = Request::Attestation {
        user_data: Some(ByteBuf::from(*binding.as_bytes())),
        nonce: None,
        public_key: None,
    };
    match device(request) {
        Response::Attestation { document } => Ok(evidence_of_document(&document)),
        Response::Error(code) => Err(std::io::Error::other(format!(
            "the security module gives no document: {code:?}"
        ))),
        _ => Err(std::io::Error::other(
            "the security module answered another question",
        )),
    }
}

/// Evidence from a document's bytes.
///
/// # Panics
/// Never: text has a JSON form.
#[must_use]
pub fn evidence_of_document(document: &[u8]) -> Evidence {
    let body = serde_json::to_value(Body::of_document(document));
    Evidence::new(TeeKind::Nitro, body.expect("a document has a JSON form"))
}

#[cfg(test)]
mod tests {
    use aws_nitro_enclaves_nsm_api::api::ErrorCode;

    use super::*;

    #[test]
    fn a_document_is_asked_for_with_the_whole_binding() {
        let binding = Binding::from([0x5a; 64]);
        let evidence = exchange(&binding, |request| {
            let Request::Attestation {
                user_data,
                nonce: None,
                public_key: None,
            } = request
            else {
                panic!("another question");
            };
            assert_eq!(user_data.unwrap()[..], [0x5a; 64]);
            Response::Attestation {
                document: b"a document".to_vec(),
            }
        });
        assert_eq!(evidence.unwrap(), evidence_of_document(b"a document"));
    }

    #[test]
    fn what_the_module_says_instead_is_told() {
        let said = |response| {
            exchange(&Binding::from([1; 64]), |_| response)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            said(Response::Error(ErrorCode::InvalidOperation)),
            "the security module gives no document: InvalidOperation"
        );
        assert_eq!(
            said(Response::ExtendPCR { data: Vec::new() }),
            "the security module answered another question"
        );
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            collect(&Machine::at(root.path()), &Binding::from([1; 64]))
                .unwrap_err()
                .to_string(),
            "this is no nitro: /dev/nsm is not there"
        );
    }
}
