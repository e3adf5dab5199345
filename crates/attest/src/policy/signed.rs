//! Policies that an owner stands behind.
//!
//! A signed policy is the policy's text under one comment line that holds the
//! owner's public key and the signature of every byte after that line. Whoever
//! stores or carries the file is hostile: a reader that names an owner takes
//! nothing unsigned and nothing signed by another.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use occlude_keys::{Domain, OwnerKey, OwnerPublic, Signature, hexadecimal};

use super::{Policy, PolicyError};

/// Begins the first line of a signed policy.
const HEAD: &str = "# occlude-signed-policy 1 ";

/// A policy from a file, and who signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    policy: Policy,
    signed_by: Option<OwnerPublic>,
}

/// Why a policy file is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyFileError {
    /// The text is not a policy.
    #[error("not a policy: {0}")]
    Policy(#[from] PolicyError),
    /// A signed policy is wanted, and this one is not signed.
    #[error("the policy is not signed, expected one signed by {expected}")]
    NotSigned {
        /// The owner that was asked for.
        expected: Box<OwnerPublic>,
    },
    /// Signed by another owner than the one asked for.
    #[error("the policy is signed by {found}, expected {expected}")]
    SignedByAnother {
        /// The owner that was asked for.
        expected: Box<OwnerPublic>,
        /// The owner that signed.
        found: Box<OwnerPublic>,
    },
    /// The first line says that it is signed, and cannot be read.
    #[error("the policy's signature line is malformed: expected `{HEAD}OWNER SIGNATURE`")]
    MalformedSignature,
    /// The text was changed since it was signed.
    #[error("the policy's signature does not hold")]
    BadSignature,
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Why a policy is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignPolicyError {
    /// The text is not a policy.
    #[error("not a policy: {0}")]
    Policy(#[from] PolicyError),
    /// Nobody compared it with reference values, and a signature says so.
    #[error(
        "the policy is not reviewed: compare it with reference values, then set `reviewed = true`"
    )]
    NotReviewed,
    /// It carries a signature already.
    #[error("the policy is signed already")]
    AlreadySigned,
}

/// Signs a policy's text, exactly as it stands, comments included.
///
/// # Errors
/// [`SignPolicyError`]: no policy, not reviewed, or signed already.
pub fn sign_policy(text: &str, key: &OwnerKey) -> Result<String, SignPolicyError> {
    if text.starts_with(HEAD) {
        return Err(SignPolicyError::AlreadySigned);
    }
    if !Policy::parse(text)?.reviewed() {
        return Err(SignPolicyError::NotReviewed);
    }
    let signature = hex::encode(key.sign(Domain::Policy, text.as_bytes()));
    Ok(format!("{HEAD}{} {signature}\n{text}", key.public()))
}

impl PolicyFile {
    /// Reads a policy's text, signed or not. A signature that is there must
    /// hold; with `signed_by`, it must be there and that owner's.
    ///
    /// # Errors
    /// [`PolicyFileError`]; no part of the text is used then.
    pub fn parse(text: &str, signed_by: Option<&OwnerPublic>) -> Result<Self, PolicyFileError> {
        let Some(rest) = text.strip_prefix(HEAD) else {
            return match signed_by {
                Some(expected) => Err(PolicyFileError::NotSigned {
                    expected: Box::new(*expected),
                }),
                None => Ok(Self {
                    policy: Policy::parse(text)?,
                    signed_by: None,
                }),
            };
        };
        let (line, signed) = rest
            .split_once('\n')
            .ok_or(PolicyFileError::MalformedSignature)?;
        let (signer, signature) =
            signature_line(line).ok_or(PolicyFileError::MalformedSignature)?;
        if let Some(expected) = signed_by.filter(|expected| **expected != signer) {
            return Err(PolicyFileError::SignedByAnother {
                expected: Box::new(*expected),
                found: Box::new(signer),
            });
        }
        signer
            .verify(Domain::Policy, signed.as_bytes(), &signature)
            .map_err(|_| PolicyFileError::BadSignature)?;
        Ok(Self {
            policy: Policy::parse(signed)?,
            signed_by: Some(signer),
        })
    }

    /// Reads a policy from a file; see [`PolicyFile::parse`].
    ///
    /// # Errors
    /// [`PolicyFileError`].
    pub fn read(path: &Path, signed_by: Option<&OwnerPublic>) -> Result<Self, PolicyFileError> {
        let io = |source| PolicyFileError::Io {
            path: path.to_owned(),
            source,
        };
        // One byte more than the longest, so that a longer one is told apart.
        let limit = Policy::MAX_BYTES + LONGEST_HEAD;
        let mut text = String::new();
        let length = File::open(path)
            .map_err(io)?
            .take(limit + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        if length as u64 > limit {
            return Err(PolicyError::TooLarge {
                limit: Policy::MAX_BYTES,
                found: length as u64,
            }
            .into());
        }
        Self::parse(&text, signed_by)
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The policy alone.
    #[must_use]
    pub fn into_policy(self) -> Policy {
        self.policy
    }

    /// The owner whose signature holds, if it is signed.
    #[must_use]
    pub fn signed_by(&self) -> Option<&OwnerPublic> {
        self.signed_by.as_ref()
    }
}

/// More than a signature line has.
const LONGEST_HEAD: u64 = 512;

fn signature_line(line: &str) -> Option<(OwnerPublic, Signature)> {
    let (owner, signature) = line.split_once(' ')?;
    Some((owner.parse().ok()?, hexadecimal::parse(signature).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "# Ours.\nformat = 1\nreviewed = true\n";

    fn owner(number: u8) -> OwnerKey {
        OwnerKey::from_secret(&[number; 64])
    }

    #[test]
    fn a_signed_policy_says_who_signed_it() {
        let signed = sign_policy(POLICY, &owner(1)).unwrap();
        for wanted in [None, Some(&owner(1).public())] {
            let file = PolicyFile::parse(&signed, wanted).unwrap();
            assert_eq!(file.signed_by(), Some(&owner(1).public()));
            assert_eq!(file.into_policy(), Policy::parse(POLICY).unwrap());
        }
    }

    #[test]
    fn a_signed_policy_stays_a_policy_for_readers_of_plain_ones() {
        let signed = sign_policy(POLICY, &owner(1)).unwrap();
        assert_eq!(Policy::parse(&signed), Policy::parse(POLICY));
    }

    #[test]
    fn a_plain_policy_is_refused_where_an_owner_is_named() {
        assert!(
            PolicyFile::parse(POLICY, None)
                .unwrap()
                .signed_by()
                .is_none()
        );
        let expected = owner(1).public();
        assert!(matches!(
            PolicyFile::parse(POLICY, Some(&expected)),
            Err(PolicyFileError::NotSigned { expected: named }) if *named == expected
        ));
    }

    #[test]
    fn a_policy_signed_by_another_is_refused() {
        let signed = sign_policy(POLICY, &owner(2)).unwrap();
        let wanted = owner(1).public();
        assert!(matches!(
            PolicyFile::parse(&signed, Some(&wanted)),
            Err(PolicyFileError::SignedByAnother { expected, found })
                if *expected == wanted && *found == owner(2).public()
        ));
    }

    #[test]
    fn a_policy_that_claims_another_signer_is_refused() {
        let signed = sign_policy(POLICY, &owner(2)).unwrap();
        let forged = signed.replace(
            &owner(2).public().to_string(),
            &owner(1).public().to_string(),
        );
        assert!(matches!(
            PolicyFile::parse(&forged, Some(&owner(1).public())),
            Err(PolicyFileError::BadSignature)
        ));
    }

    #[test]
    fn every_changed_byte_of_a_signed_policy_is_refused() {
        let signed = sign_policy(POLICY, &owner(1)).unwrap();
        for index in 0..signed.len() {
            let mut bytes = signed.clone().into_bytes();
            bytes[index] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            let error = PolicyFile::parse(&changed, Some(&owner(1).public())).unwrap_err();
            let line = signed.find('\n').unwrap();
            let expected = if index < HEAD.len() {
                matches!(error, PolicyFileError::NotSigned { .. })
            } else if index <= line {
                matches!(
                    error,
                    PolicyFileError::MalformedSignature | PolicyFileError::BadSignature
                )
            } else {
                matches!(error, PolicyFileError::BadSignature)
            };
            assert!(expected, "byte {index}: {error:?}");
        }
    }

    #[test]
    fn a_bad_signature_is_refused_even_where_no_owner_is_named() {
        let signed = sign_policy(POLICY, &owner(1)).unwrap() + "# more\n";
        assert!(matches!(
            PolicyFile::parse(&signed, None),
            Err(PolicyFileError::BadSignature)
        ));
    }

    #[test]
    fn a_signature_for_another_purpose_is_refused() {
        let signature = hex::encode(owner(1).sign(Domain::BrokerRequest, POLICY.as_bytes()));
        let forged = format!("{HEAD}{} {signature}\n{POLICY}", owner(1).public());
        assert!(matches!(
            PolicyFile::parse(&forged, None),
            Err(PolicyFileError::BadSignature)
        ));
    }

    #[test]
    fn what_is_not_reviewed_no_policy_or_signed_already_is_not_signed() {
        assert_eq!(
            sign_policy("format = 1", &owner(1)),
            Err(SignPolicyError::NotReviewed)
        );
        assert_eq!(
            sign_policy("format = 2", &owner(1)),
            Err(SignPolicyError::Policy(PolicyError::ForeignFormat {
                found: 2
            }))
        );
        let signed = sign_policy(POLICY, &owner(1)).unwrap();
        assert_eq!(
            sign_policy(&signed, &owner(2)),
            Err(SignPolicyError::AlreadySigned)
        );
    }

    #[test]
    fn a_file_is_read_and_a_missing_or_endless_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        let missing = PolicyFile::read(&path, None).unwrap_err();
        assert!(matches!(missing, PolicyFileError::Io { path: ref named, .. } if *named == path));
        std::fs::write(&path, sign_policy(POLICY, &owner(1)).unwrap()).unwrap();
        let file = PolicyFile::read(&path, Some(&owner(1).public())).unwrap();
        assert_eq!(file.policy(), &Policy::read(&path).unwrap());
        let endless = PolicyFile::read(Path::new("/dev/zero"), None).unwrap_err();
        assert!(matches!(
            endless,
            PolicyFileError::Policy(PolicyError::TooLarge {
                limit: Policy::MAX_BYTES,
                ..
            })
        ));
    }
}
