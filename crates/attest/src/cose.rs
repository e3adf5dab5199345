//! Signed CBOR (RFC 9052, section 4.2: `COSE_Sign1`).

use coset::{
    CborSerializable, CoseSign1, RegisteredLabelWithPrivate, TaggedCborSerializable, iana,
};

use crate::VerifyError;
use crate::canonical::reason;

/// Reads a message that is signed with `algorithm`, tagged or not, and refuses whatever
/// is not signed: unprotected headers, another encoding, bytes after the end.
pub(crate) fn parse(
    what: &str,
    bytes: &[u8],
    algorithm: iana::Algorithm,
) -> Result<CoseSign1, VerifyError> {
    let malformed = |why: &dyn std::fmt::Display| VerifyError::Malformed {
        reason: format!("{what}: {}", reason(why)),
    };
    let tagged = CoseSign1::from_tagged_slice(bytes);
    let (message, written) = match tagged {
        Ok(message) => (message.clone(), message.to_tagged_vec()),
        Err(_) => {
            let message = CoseSign1::from_slice(bytes).map_err(|error| malformed(&error))?;
            (message.clone(), message.to_vec())
        }
    };
    if written.map_err(|error| malformed(&error))? != bytes {
        return Err(malformed(
            &"it is not in the one encoding that its signature covers",
        ));
    }
    if !message.unprotected.is_empty() {
        return Err(malformed(&"it has headers that are not signed"));
    }
    let expected = coset::Header {
        alg: Some(RegisteredLabelWithPrivate::Assigned(algorithm)),
        ..coset::Header::default()
    };
    if message.protected.header != expected {
        return Err(malformed(&format!(
            "its headers are not those of a message signed with {algorithm:?}"
        )));
    }
    Ok(message)
}
