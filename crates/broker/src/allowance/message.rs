//! How a request for an allowance and its answer travel.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use occlude_keys::{ModelKey, hexadecimal_bytes};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AllowanceRequest, UsageReport};
use crate::kbs::jwe::RecipientKey;
use crate::random;

/// The salt of the key's derivation.
const LABEL: &[u8] = b"occlude/v1/allowance";

/// Begins the associated data of each direction.
const REQUEST: &[u8] = b"request\0";
const ANSWER: &[u8] = b"answer\0";

/// Bytes of every message before it is sealed: JSON, then spaces, so that its length says
/// nothing.
const PADDED: usize = 512;

const NONCE_BYTES: usize = 12;

hexadecimal_bytes! {
    /// SHA-256 of a sealed request: what its answer belongs to.
    pub(crate) MessageDigest, 32
}

/// A nonce of 12 bytes and a message under AES-256-GCM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SealedMessage {
    #[serde(with = "hex::serde")]
    sealed: Vec<u8>,
}

impl SealedMessage {
    pub(crate) fn digest(&self) -> MessageDigest {
        <[u8; 32]>::from(Sha256::digest(&self.sealed)).into()
    }
}

/// What an instance sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Asked {
    /// For queries.
    Allowance(AllowanceRequest),
    /// To take a report.
    Report(UsageReport),
}

/// What both sides seal with: derived (HKDF-SHA-256) from the model's key, which only the
/// broker and attested instances have, and the public key that a session's evidence covers.
pub(crate) struct AllowanceKey(Aes256Gcm);

impl AllowanceKey {
    pub(crate) fn new(model: &ModelKey, session: &RecipientKey) -> Self {
        let key = model.derive(LABEL, &session.to_sec1());
        Self(Aes256Gcm::new((&*key).into()))
    }

    pub(crate) fn seal_request(&self, request: &Asked) -> SealedMessage {
        self.seal(REQUEST, request)
    }

    pub(crate) fn open_request(&self, sealed: &SealedMessage) -> Option<Asked> {
        self.open(REQUEST, sealed)
    }

    pub(crate) fn seal_answer(&self, to: &MessageDigest, answer: &impl Serialize) -> SealedMessage {
        self.seal(&[ANSWER, to.as_bytes()].concat(), answer)
    }

    pub(crate) fn open_answer<T: DeserializeOwned>(
        &self,
        to: &MessageDigest,
        sealed: &SealedMessage,
    ) -> Option<T> {
        self.open(&[ANSWER, to.as_bytes()].concat(), sealed)
    }

    fn seal(&self, aad: &[u8], message: &impl Serialize) -> SealedMessage {
        let mut msg = serde_json::to_vec(message).expect("numbers and strings make JSON");
        assert!(msg.len() <= PADDED, "a message is a few numbers");
        msg.resize(PADDED, b' ');
        let nonce = random::<NONCE_BYTES>();
        let msg = &msg[..];
        let sealed = self
            .0
            .encrypt(&nonce.into(), Payload { msg, aad })
            .expect("the message is far shorter than AES-GCM's limit");
        SealedMessage {
            sealed: [&nonce[..], &sealed].concat(),
        }
    }

    /// `None` if it was sealed otherwise, or says nothing that this version knows.
    fn open<T: DeserializeOwned>(&self, aad: &[u8], message: &SealedMessage) -> Option<T> {
        let (nonce, msg) = message.sealed.split_first_chunk::<NONCE_BYTES>()?;
        let opened = self.0.decrypt(nonce.into(), Payload { msg, aad }).ok()?;
        serde_json::from_slice(&opened).ok()
    }
}
