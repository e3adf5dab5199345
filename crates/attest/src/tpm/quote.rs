//! A quote's bytes, read by the `tpm2-protocol` crate, and whether its key signed them.

use std::collections::BTreeMap;

use p256::ecdsa::signature::Verifier as _;
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey};
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256};
use tpm2_protocol::TpmUnmarshal;
use tpm2_protocol::data::{TpmAlgId, TpmsAttest, TpmtSignature, TpmuAttest, TpmuSignature};

use super::TpmDigest;
use crate::{Register, VerifyError};

/// The shortest RSA key whose word counts.
const MIN_RSA_BITS: u32 = 2048;

/// What errors call the signer.
const BAD_SIGNATURE: VerifyError = VerifyError::BadSignature {
    of: "the quote",
    by: "the attestation key",
};

/// A verified quote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Quote {
    pub(crate) qualifying_data: Vec<u8>,
    pub(crate) pcrs: BTreeMap<Register, TpmDigest>,
    /// SHA-256 of their values, one after the other.
    pub(crate) pcr_digest: TpmDigest,
    pub(crate) firmware_version: u64,
    pub(crate) resets: u32,
    pub(crate) restarts: u32,
}

/// A key that signs quotes.
pub(crate) enum AttestationKey {
    Rsa(rsa::pkcs1v15::VerifyingKey<Sha256>),
    P256(p256::ecdsa::VerifyingKey),
}

/// A signature with SHA-256.
pub(crate) enum Signature {
    /// RSASSA-PKCS1-v1_5.
    Rsa(rsa::pkcs1v15::Signature),
    /// ECDSA on P-256.
    P256(p256::ecdsa::Signature),
}

impl Quote {
    /// Verifies what a TPM signed, and that `pcrs` are the values of the registers that it
    /// says it signed, in their order.
    pub(crate) fn verify(
        message: &[u8],
        signature: &Signature,
        key: &AttestationKey,
        pcrs: &[TpmDigest],
    ) -> Result<Self, VerifyError> {
        key.verify(message, signature)?;
        let (attest, rest) = TpmsAttest::unmarshal(message).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes after its end"));
        }
        let TpmuAttest::Quote(quoted) = &attest.attested else {
            return Err(VerifyError::Unsupported {
                what: format!(
                    "what the TPM signed is not a quote but {:?}",
                    attest.attest_type
                ),
            });
        };
        let mut selected = Vec::new();
        for bank in quoted.pcr_select.iter() {
            let numbers = (0..).zip(bank.pcr_select.iter()).flat_map(|(byte, bits)| {
                (0..8_u64)
                    .filter(move |bit| bits >> bit & 1 == 1)
                    .map(move |bit| 8 * byte + bit)
            });
            let registers: Vec<Register> = numbers.filter_map(Register::new).collect();
            if bank.hash != TpmAlgId::Sha256 && !registers.is_empty() {
                return Err(VerifyError::Unsupported {
                    what: format!("a quote of registers of {:?}: SHA-256 is known", bank.hash),
                });
            }
            selected.extend(registers);
        }
        if selected.len() != pcrs.len() {
            return Err(malformed(&format_args!(
                "it is of {} registers, {} came along",
                selected.len(),
                pcrs.len()
            )));
        }
        let mut hash = Sha256::new();
        for value in pcrs {
            hash.update(value.as_bytes());
        }
        let pcr_digest: [u8; 32] = hash.finalize().into();
        if quoted.pcr_digest[..] != pcr_digest {
            return Err(VerifyError::Registers);
        }
        let registers = selected.iter().copied().zip(pcrs.iter().copied());
        let pcrs: BTreeMap<_, _> = registers.collect();
        if pcrs.len() != selected.len() {
            return Err(malformed(&"a register is selected twice"));
        }
        Ok(Self {
            qualifying_data: attest.extra_data.to_vec(),
            pcrs,
            pcr_digest: pcr_digest.into(),
            firmware_version: attest.firmware_version.into(),
            resets: attest.clock_info.reset_count.into(),
            restarts: attest.clock_info.restart_count.into(),
        })
    }
}

impl AttestationKey {
    /// A key from its `SubjectPublicKeyInfo` (RFC 5280, section 4.1.2.7), in the one
    /// encoding that it has: its fingerprint is over these bytes.
    pub(crate) fn from_public_key_info(der: &[u8]) -> Result<Self, VerifyError> {
        let (key, encoded) = if let Ok(key) = rsa::PublicKey::from_public_key_der(der) {
            (Self::from_rsa(key.clone())?, key.to_public_key_der())
        } else if let Ok(key) = p256::PublicKey::from_public_key_der(der) {
            (Self::P256(key.into()), key.to_public_key_der())
        } else {
            return Err(VerifyError::Unsupported {
                what: "an attestation key that is neither of RSA nor on P-256".to_owned(),
            });
        };
        if encoded.is_ok_and(|encoded| encoded.as_bytes() == der) {
            return Ok(key);
        }
        Err(VerifyError::Malformed {
            reason: "the attestation key is not in the one encoding that it has".to_owned(),
        })
    }

    pub(crate) fn from_rsa(key: rsa::PublicKey) -> Result<Self, VerifyError> {
        let bits = key.n().bit_width();
        if bits < MIN_RSA_BITS {
            return Err(VerifyError::Unsupported {
                what: format!("an attestation key of RSA with {bits} bits"),
            });
        }
        Ok(Self::Rsa(rsa::pkcs1v15::VerifyingKey::new(key)))
    }

    fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), VerifyError> {
        let verified = match (self, signature) {
            (Self::Rsa(key), Signature::Rsa(signature)) => key.verify(message, signature),
            (Self::P256(key), Signature::P256(signature)) => key.verify(message, signature),
            _ => return Err(BAD_SIGNATURE),
        };
        verified.map_err(|_| BAD_SIGNATURE)
    }
}

impl Signature {
    /// A signature as a TPM gives it, `TPMT_SIGNATURE`.
    pub(crate) fn from_tpm(bytes: &[u8]) -> Result<Self, VerifyError> {
        let (signature, rest) =
            TpmtSignature::unmarshal(bytes).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes after its signature"));
        }
        match &signature.signature {
            TpmuSignature::Rsassa(rsa) if rsa.hash == TpmAlgId::Sha256 => Self::from_rsa(&rsa.sig),
            TpmuSignature::Ecdsa(ecdsa) if ecdsa.hash == TpmAlgId::Sha256 => {
                let number = |bytes: &[u8]| {
                    let mut number = [0; 32];
                    let start = number.len().checked_sub(bytes.len())?;
                    number[start..].copy_from_slice(bytes);
                    Some(number)
                };
                let numbers = number(&ecdsa.signature_r).zip(number(&ecdsa.signature_s));
                let (r, s) = numbers.ok_or(BAD_SIGNATURE)?;
                p256::ecdsa::Signature::from_scalars(r, s)
                    .map(Self::P256)
                    .map_err(|_| BAD_SIGNATURE)
            }
            _ => Err(VerifyError::Unsupported {
                what: format!(
                    "a quote signed with {:?}: RSASSA and ECDSA with SHA-256 are known",
                    signature.sig_alg
                ),
            }),
        }
    }

    /// An RSA signature alone.
    pub(crate) fn from_rsa(bytes: &[u8]) -> Result<Self, VerifyError> {
        bytes.try_into().map(Self::Rsa).map_err(|_| BAD_SIGNATURE)
    }
}

fn malformed(why: &dyn std::fmt::Display) -> VerifyError {
    VerifyError::malformed("the quote", why)
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer;

    use super::*;

    const SHA256: u16 = 0x0b;
    const SHA384: u16 = 0x0c;

    /// A TPM of the test's own: it signs whatever it is told to.
    struct Signing(SigningKey);

    impl Signing {
        fn new() -> Self {
            Self(SigningKey::from_slice(&[7; 32]).unwrap())
        }

        fn public(&self) -> p256::PublicKey {
            self.0.verifying_key().into()
        }

        fn verify(&self, message: &[u8], pcrs: &[TpmDigest]) -> Result<Quote, VerifyError> {
            let signature = Signature::P256(self.0.sign(message));
            let key = AttestationKey::P256(*self.0.verifying_key());
            Quote::verify(message, &signature, &key, pcrs)
        }
    }

    /// What a TPM signs, `TPMS_ATTEST`: of this type, over these banks' registers.
    fn attest(kind: u16, banks: &[(u16, [u8; 3])], pcrs: &[TpmDigest]) -> Vec<u8> {
        let mut message = vec![0xff, b'T', b'C', b'G'];
        message.extend(kind.to_be_bytes());
        message.extend([0, 0, 0, 3, 1, 2, 3]);
        message.extend([0; 8]);
        message.extend([0, 0, 0, 5, 0, 0, 0, 6, 1]);
        message.extend([0, 0, 0, 0, 0, 0, 0, 9]);
        message.extend((banks.len() as u32).to_be_bytes());
        for (algorithm, bits) in banks {
            message.extend(algorithm.to_be_bytes());
            message.push(3);
            message.extend(bits);
        }
        let values: Vec<u8> = pcrs.iter().flat_map(|value| *value.as_bytes()).collect();
        message.extend([0, 32]);
        message.extend(Sha256::digest(values));
        message
    }

    const QUOTE: u16 = 0x8018;

    fn malformed_quote(reason: &str) -> Result<Quote, VerifyError> {
        Err(VerifyError::Malformed {
            reason: format!("the quote: {reason}"),
        })
    }

    fn unsupported<T>(what: &str) -> Result<T, VerifyError> {
        Err(VerifyError::Unsupported {
            what: what.to_owned(),
        })
    }

    #[test]
    fn a_quote_names_the_registers_whose_values_came_along() {
        let tpm = Signing::new();
        let pcrs = [[4; 32], [23; 32]].map(TpmDigest::from);
        // Banks of which nothing is selected are named by some TPMs.
        let banks = [(SHA384, [0; 3]), (SHA256, [0x10, 0, 0x80])];
        let quote = tpm.verify(&attest(QUOTE, &banks, &pcrs), &pcrs).unwrap();
        let register = |number| Register::new(number).unwrap();
        assert_eq!(
            quote.pcrs,
            BTreeMap::from([(register(4), pcrs[0]), (register(23), pcrs[1])])
        );
        assert_eq!(quote.qualifying_data, [1, 2, 3]);
        assert_eq!(
            (quote.resets, quote.restarts, quote.firmware_version),
            (5, 6, 9)
        );
    }

    #[test]
    fn what_a_tpm_signs_besides_quotes_is_none() {
        let tpm = Signing::new();
        let pcrs = [TpmDigest::from([4; 32])];
        let banks = [(SHA256, [0x10, 0, 0])];
        let quote = attest(QUOTE, &banks, &pcrs);
        assert_eq!(
            tpm.verify(&[&quote[..], &[0]].concat(), &pcrs),
            malformed_quote("bytes after its end")
        );
        // A time, which has as many bytes as it has (part 2, section 10.12.9).
        let mut time = attest(0x8019, &[], &[]);
        time.truncate(time.len() - 38);
        time.extend([0; 33]);
        assert_eq!(
            tpm.verify(&time, &[]),
            unsupported("what the TPM signed is not a quote but AttestTime")
        );
        let mut other = quote;
        other[0] = 0;
        assert!(matches!(
            tpm.verify(&other, &pcrs),
            Err(VerifyError::Malformed { .. })
        ));
    }

    #[test]
    fn registers_of_another_bank_or_twice_the_same_are_refused() {
        let tpm = Signing::new();
        let pcrs = [[4; 32], [4; 32]].map(TpmDigest::from);
        let other = attest(QUOTE, &[(SHA384, [0x30, 0, 0])], &pcrs);
        assert_eq!(
            tpm.verify(&other, &pcrs),
            unsupported("a quote of registers of Sha384: SHA-256 is known")
        );
        let twice = attest(
            QUOTE,
            &[(SHA256, [0x10, 0, 0]), (SHA256, [0x10, 0, 0])],
            &pcrs,
        );
        assert_eq!(
            tpm.verify(&twice, &pcrs),
            malformed_quote("a register is selected twice")
        );
    }

    #[test]
    fn a_key_has_one_encoding_and_enough_bits() {
        let encoded = Signing::new().public().to_public_key_der().unwrap();
        assert!(AttestationKey::from_public_key_info(encoded.as_bytes()).is_ok());
        // The same point, compressed.
        let (head, point) = encoded.as_bytes().split_at(26);
        let mut compressed = head.to_vec();
        compressed[1] -= 32;
        compressed[24] -= 32;
        compressed.push(2 + (point[64] & 1));
        compressed.extend(&point[1..33]);
        let refused = |der: &[u8]| AttestationKey::from_public_key_info(der).err().unwrap();
        assert_eq!(
            refused(&compressed),
            VerifyError::Malformed {
                reason: "the attestation key is not in the one encoding that it has".to_owned()
            }
        );
        assert_eq!(
            refused(b"no key"),
            VerifyError::Unsupported {
                what: "an attestation key that is neither of RSA nor on P-256".to_owned()
            }
        );
        // An odd modulus of 1,024 bits.
        let mut modulus = vec![0xc1; 128];
        modulus[127] = 1;
        let number = |bytes: &[u8]| rsa::BoxedUint::from_be_slice_vartime(bytes);
        let short = rsa::PublicKey::new(number(&modulus), number(&[1, 0, 1])).unwrap();
        assert_eq!(
            refused(short.to_public_key_der().unwrap().as_bytes()),
            VerifyError::Unsupported {
                what: "an attestation key of RSA with 1024 bits".to_owned()
            }
        );
    }

    #[test]
    fn a_signature_of_another_algorithm_is_refused() {
        let refused = |bytes: &[u8]| Signature::from_tpm(bytes).err().unwrap();
        let unknown = |algorithm: &str| VerifyError::Unsupported {
            what: format!(
                "a quote signed with {algorithm}: RSASSA and ECDSA with SHA-256 are known"
            ),
        };
        // ECDSA with SHA-1; RSAPSS with SHA-256 (part 2, section 11.3.4).
        assert_eq!(
            refused(&[0, 0x18, 0, 4, 0, 1, 1, 0, 1, 1]),
            unknown("Ecdsa")
        );
        assert_eq!(refused(&[0, 0x16, 0, 0x0b, 0, 1, 1]), unknown("Rsapss"));
        let number = [&[0, 33][..], &[1; 33]].concat();
        let long = [&[0, 0x18, 0, 0x0b][..], &number, &number].concat();
        assert_eq!(refused(&long), BAD_SIGNATURE);
        assert_eq!(
            refused(&[0, 0x18, 0, 0x0b, 0, 1, 1, 0, 1, 1, 0]),
            malformed(&"bytes after its signature")
        );
    }
}
