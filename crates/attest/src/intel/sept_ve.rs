//! Guests whose pages the host can make fault.
//!
//! Without `SEPT_VE_DISABLE` in its attributes ("Intel TDX Module Base Architecture
//! Specification", 348549, `ATTRIBUTES`, bit 28), a guest gets an exception (`#VE`) at a
//! page that the host took away and put back, at a place of the host's choice, and a kernel
//! that does not expect it there can be led astray. Machines of Azure's run so, with a
//! paravisor between host and kernel. So it is a matter of policy, but `dcap-qvl` refuses
//! such quotes without a switch, after everything else was verified.
//!
//! It is shown the quote with the bit set, and its signature algorithm clears the bit
//! before it verifies the quote's signature, and only that one: what is verified are the
//! bytes that were signed.

use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::configs::DefaultConfig;
use dcap_qvl::quote::Quote;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{Policy, QuoteClaims, QuoteCollateralV3};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use crate::UnixTime;
use crate::tdx::TdxAttributes;

/// The audited provider of the library.
type Provider = <DefaultConfig as Config>::Crypto;

/// Where a guest's attributes are in a quote: behind its header, in version 5 a type and a
/// length, and 120 bytes of the report.
const ATTRIBUTES: usize = 48 + 120;
const ATTRIBUTES_5: usize = ATTRIBUTES + 6;

/// Verifies a quote with everything that the library checks, but for this bit and what our
/// own policy judges.
pub(super) fn verify(
    verifier: QuoteVerifier,
    bytes: &[u8],
    quote: Quote,
    collateral: QuoteCollateralV3,
    at: UnixTime,
) -> anyhow::Result<QuoteClaims> {
    let guest = quote.report.as_td10();
    let attributes = guest.map(|report| TdxAttributes::from(report.td_attributes));
    if attributes.is_none_or(|attributes| attributes.sept_ve_disable()) {
        return verifier.verify_with_policy(bytes, collateral, at.0, &Everything);
    }
    let mut shown = bytes.to_vec();
    change(&mut shown, |byte| byte | TdxAttributes::SEPT_VE_DISABLE);
    let verifier = verifier.with_config::<Cleared>();
    let claims = verifier.verify_with_policy(&shown, collateral, at.0, &Everything)?;
    Ok(QuoteClaims {
        report: quote.report,
        ..claims
    })
}

/// Leaves the judgement to our own policy.
struct Everything;

impl Policy for Everything {
    fn validate(&self, _: &QuoteClaims) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Changes the byte that has the bit, if these are what a guest's quote signs, or the
/// quote. No certificate, list, JSON or report of an enclave begins as one does.
fn change(bytes: &mut [u8], change: impl FnOnce(u8) -> u8) {
    let attributes = match bytes {
        [4, 0, _, _, 0x81, 0, 0, 0, ..] => ATTRIBUTES,
        [5, 0, _, _, 0x81, 0, 0, 0, ..] => ATTRIBUTES_5,
        _ => return,
    };
    if let Some(byte) = bytes.get_mut(attributes + 3) {
        *byte = change(*byte);
    }
}

/// The library's own configuration, but for the bit.
struct Cleared;

impl Config for Cleared {
    type X509 = <DefaultConfig as Config>::X509;
    type SigEncoder = <DefaultConfig as Config>::SigEncoder;
    type Crypto = Self;
}

impl CryptoProvider for Cleared {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        &BitCleared
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        Provider::sha256(data)
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        Provider::sha384(data)
    }
}

/// ECDSA over P-256, of a guest's quote with the bit cleared.
#[derive(Debug)]
struct BitCleared;

impl SignatureVerificationAlgorithm for BitCleared {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let mut message = message.to_vec();
        change(&mut message, |byte| byte & !TdxAttributes::SEPT_VE_DISABLE);
        Provider::sig_algo().verify_signature(public_key, &message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        Provider::sig_algo().public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        Provider::sig_algo().signature_alg_id()
    }
}

#[cfg(test)]
mod tests {
    use crate::intel::synthetic::{AT, Platform};
    use crate::support::{file, folder, packaged};
    use crate::tdx::TdxAttributes;
    use crate::{Collateral, VerifyError, intel};

    /// Of every version, with the bit signed as on and as off.
    #[test]
    fn the_bit_is_the_one_that_was_signed() {
        let recorded = folder().map(|_| file("tdx/tdx_quote"));
        let version_5 = packaged("dcap-qvl-0.7.1", "sample/tdx_quote_td15ex");
        for (recorded, place) in [(recorded, 48), (version_5, 48 + 6)] {
            let Some(recorded) = recorded else {
                continue;
            };
            let platform = Platform::like(&recorded);
            for signed in [0, TdxAttributes::SEPT_VE_DISABLE] {
                let mut quote = platform.quote(&recorded, |guest| {
                    guest.td_attributes = [0, 0, 0, signed, 0, 0, 0, 0];
                });
                let verify = |quote: &[u8]| {
                    let (root, collateral) = (&platform.root, Some(&platform.collateral));
                    intel::verify(root, quote, collateral, &Collateral::default(), AT)
                };
                let claims = verify(&quote).unwrap().claims;
                let guest = claims.report.as_td10().unwrap();
                assert_eq!(guest.td_attributes[3], signed);
                quote[place + 120 + 3] ^= TdxAttributes::SEPT_VE_DISABLE;
                assert_eq!(
                    verify(&quote).err(),
                    Some(VerifyError::Quote {
                        reason: "ISV enclave report signature is invalid".to_owned()
                    })
                );
            }
        }
    }
}
