//! The client's end: seals requests to a key that the evidence vouched for, and
//! opens the answers.

use std::fmt;

use bytes::Bytes;
use ohttp::{ClientRequest, ClientResponse, KeyConfig};
use zeroize::Zeroizing;

use crate::key::SUITE;
use crate::{Kem, KeyConfigurationError, OpenResponseError, SealError, message};

/// Bytes of an encapsulated response that are taken unless the client says otherwise.
const MAXIMUM_RESPONSE_BYTES: usize = 64 << 20;

/// Seals requests to one key of a gateway.
#[derive(Clone)]
pub struct Sender {
    configuration: KeyConfig,
    kem: Kem,
    maximum_response_bytes: usize,
}

impl Sender {
    /// Reads an encoded list of key configurations (RFC 9458, section 3.2), of which the first
    /// with a supported KEM and suite is used. The list must come out of verified evidence.
    ///
    /// # Errors
    /// [`KeyConfigurationError`] if it is not such a list or none in it is supported.
    pub fn from_key_configurations(list: &[u8]) -> Result<Self, KeyConfigurationError> {
        let mut rest = list;
        let mut first = None;
        while !rest.is_empty() {
            let (length, following) = rest
                .split_first_chunk::<2>()
                .ok_or(KeyConfigurationError::Malformed)?;
            let (encoded, following) = following
                .split_at_checked(usize::from(u16::from_be_bytes(*length)))
                .ok_or(KeyConfigurationError::Malformed)?;
            if let Some(sender) = Self::from_key_configuration(encoded)? {
                first.get_or_insert(sender);
            }
            rest = following;
        }
        first.ok_or(KeyConfigurationError::Unsupported)
    }

    /// Reads one configuration; none if it is well formed but not supported.
    fn from_key_configuration(encoded: &[u8]) -> Result<Option<Self>, KeyConfigurationError> {
        let identifier = encoded
            .get(1..3)
            .and_then(|bytes| <[u8; 2]>::try_from(bytes).ok())
            .map(u16::from_be_bytes)
            .ok_or(KeyConfigurationError::Malformed)?;
        let Some(kem) = Kem::from_identifier(identifier) else {
            return Ok(None);
        };
        match KeyConfig::decode(encoded) {
            Ok(configuration) => Ok(configuration.select(SUITE).is_ok().then_some(Self {
                configuration,
                kem,
                maximum_response_bytes: MAXIMUM_RESPONSE_BYTES,
            })),
            Err(ohttp::Error::Unsupported) => Ok(None),
            Err(_) => Err(KeyConfigurationError::Malformed),
        }
    }

    /// Takes encapsulated responses of at most so many bytes; by default 64 MiB.
    #[must_use]
    pub fn with_maximum_response_bytes(mut self, bytes: usize) -> Self {
        self.maximum_response_bytes = bytes;
        self
    }

    /// How keys are agreed on.
    #[must_use]
    pub fn kem(&self) -> Kem {
        self.kem
    }

    /// Seals a request, padded to its bucket, and gives what opens its answer. Connection fields
    /// and `content-length` are left out: the encapsulation frames the content itself.
    ///
    /// # Errors
    /// [`SealError::Message`] if the request is one that a gateway would refuse.
    pub fn seal(
        &self,
        request: &http::Request<Bytes>,
    ) -> Result<(Vec<u8>, ResponseOpener), SealError> {
        self.seal_message(&message::encode_request(request)?)
    }

    /// Seals bytes as they stand, neither checked nor padded: for tests of a gateway against
    /// clients that keep to no rules.
    ///
    /// # Errors
    /// [`SealError::Encapsulation`], for no message of any size that a gateway takes.
    pub fn seal_message(&self, message: &[u8]) -> Result<(Vec<u8>, ResponseOpener), SealError> {
        let (encapsulated, response) = ClientRequest::from_config(&mut self.configuration.clone())
            .and_then(|request| request.encapsulate(message))
            .map_err(|_| SealError::Encapsulation)?;
        Ok((
            encapsulated,
            ResponseOpener {
                response,
                limit: self.maximum_response_bytes,
            },
        ))
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("kem", &self.kem)
            .finish_non_exhaustive()
    }
}

/// Opens the one answer to one request.
pub struct ResponseOpener {
    response: ClientResponse,
    limit: usize,
}

impl ResponseOpener {
    /// Opens the encapsulated answer.
    ///
    /// # Errors
    /// [`OpenResponseError::Inauthentic`] for everything but this request's answer from the
    /// holder of the key, which includes answers that are not encapsulated at all.
    pub fn open(self, encapsulated: &[u8]) -> Result<http::Response<Bytes>, OpenResponseError> {
        let found = encapsulated.len();
        if found > self.limit {
            return Err(OpenResponseError::TooLarge {
                limit: self.limit,
                found,
            });
        }
        let message = self
            .response
            .decapsulate(encapsulated)
            .map(Zeroizing::new)
            .map_err(|_| OpenResponseError::Inauthentic)?;
        Ok(message::decode_response(&Bytes::from_owner(message))?)
    }
}

impl fmt::Debug for ResponseOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseOpener").finish_non_exhaustive()
    }
}
