//! Who asks, by the word of issuers whom the owner names.
//!
//! Tokens are JSON Web Tokens (RFC 7519) signed with Ed25519 (`EdDSA`, RFC 8037), so that
//! any issuer can make them. The operator has no issuer's key, and so mints no clients.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use occlude_keys::{IssuerKey, IssuerPublic, ModelId, OwnerFingerprint};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ConfigurationError;

/// The longest token that is looked at, in bytes.
const LONGEST_TOKEN: usize = 4096;

/// Begins what is hashed to stand for a client.
const LABEL: &[u8] = b"occlude/v1/client";

/// Who may say who a client is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Issuer {
    /// What its tokens say as `iss`. Two keys may have one name, while one replaces the
    /// other.
    pub name: String,
    /// What its tokens are signed with.
    pub key: IssuerPublic,
}

impl Issuer {
    pub(crate) fn check(&self) -> Result<(), ConfigurationError> {
        if (1..=Claims::LONGEST_NAME).contains(&self.name.len()) {
            return Ok(());
        }
        Err(ConfigurationError::Value {
            field: "issuers.name",
            found: format!("{} bytes", self.name.len()),
            expected: "1 to 256 bytes",
        })
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Client {
    issuer: String,
    subject: String,
}

impl Client {
    /// What stands for this client where one model's queries are counted: SHA-256 of
    /// `"occlude/v1/client"`, the owner's fingerprint, and model id, issuer and subject, each
    /// after its length (8 bytes, little-endian). All versions of a model count one client's
    /// queries together. Whoever has the digest can try names.
    #[must_use]
    pub fn digest(&self, owner: &OwnerFingerprint, model: &ModelId) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(LABEL);
        hash.update(owner.as_bytes());
        for part in [model.as_str(), &self.issuer, &self.subject] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The issuer's name.
    pub iss: String,
    /// The client's name, 1 to 256 bytes.
    pub sub: String,
    /// The ids of the models that may be asked: a list, also of one (RFC 7519, section 4.1.3).
    pub aud: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
}

impl Claims {
    /// The longest name of an issuer or a client, in bytes.
    pub const LONGEST_NAME: usize = 256;
}

/// Why a token names no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not a token, or one that says too little.
    #[error("not a token of this model: expected a JSON Web Token that says iss, sub, aud and exp")]
    Malformed,
    /// An issuer whom the owner does not name.
    #[error("the token is of an issuer whom the model's owner does not name")]
    UnknownIssuer,
    /// Not signed by that issuer with Ed25519, or changed since.
    #[error("the token's signature does not hold")]
    Signature,
    /// For another model.
    #[error("the token is for another model: its aud does not name this one")]
    Audience,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time is to come.
    #[error("the token does not hold yet")]
    NotYet,
}

/// Signs a token.
///
/// # Panics
/// Never: what is signed is made of strings and numbers.
#[must_use]
pub fn issue(key: &IssuerKey, claims: &Claims) -> String {
    let key = EncodingKey::from_ed_der(&key.to_pkcs8());
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key)
        .expect("strings and numbers have a JSON form")
}

/// The part of a token that says whose key to check it with.
#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

/// The part of a token that is used once it is verified.
#[derive(Deserialize)]
struct Verified {
    sub: String,
    exp: u64,
    nbf: Option<u64>,
}

/// Whom a token names, at a time in seconds since 1970. The system's clock is not asked: it
/// is the operator's.
pub(crate) fn identify(
    issuers: &[Issuer],
    token: &str,
    model: &ModelId,
    now: u64,
) -> Result<Client, TokenError> {
    if token.len() > LONGEST_TOKEN {
        return Err(TokenError::Malformed);
    }
    let Unverified { iss } = jsonwebtoken::dangerous::insecure_decode_claims(token)
        .map_err(|_| TokenError::Malformed)?;
    let mut refused = TokenError::UnknownIssuer;
    for issuer in issuers.iter().filter(|issuer| issuer.name == iss) {
        match verify(issuer, token, model) {
            Ok(verified) => return client(iss, verified, now),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn verify(issuer: &Issuer, token: &str, model: &ModelId) -> Result<Verified, TokenError> {
    use jsonwebtoken::errors::ErrorKind;

    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.validate_exp = false;
    validation.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
    validation.set_issuer(&[&issuer.name]);
    validation.set_audience(&[model.as_str()]);
    let key = DecodingKey::from_ed_der(issuer.key.as_bytes());
    let token = jsonwebtoken::decode::<Verified>(token, &key, &validation);
    token
        .map(|token| token.claims)
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature
            | ErrorKind::InvalidAlgorithm
            | ErrorKind::InvalidAlgorithmName => TokenError::Signature,
            ErrorKind::InvalidAudience => TokenError::Audience,
            _ => TokenError::Malformed,
        })
}

fn client(issuer: String, verified: Verified, now: u64) -> Result<Client, TokenError> {
    if !(1..=Claims::LONGEST_NAME).contains(&verified.sub.len()) {
        return Err(TokenError::Malformed);
    }
    if verified.exp <= now {
        return Err(TokenError::Expired);
    }
    if verified.nbf.is_some_and(|begin| now < begin) {
        return Err(TokenError::NotYet);
    }
    Ok(Client {
        issuer,
        subject: verified.sub,
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn model() -> ModelId {
        "digits".parse().unwrap()
    }

    fn issuer(key: &IssuerKey) -> Issuer {
        Issuer {
            name: "https://issuer.example".to_owned(),
            key: key.public(),
        }
    }

    fn claims() -> Claims {
        Claims {
            iss: "https://issuer.example".to_owned(),
            sub: "alice".to_owned(),
            aud: vec!["digits".to_owned()],
            exp: NOW + 60,
        }
    }

    /// A token with other claims: absent where they are `null`.
    fn token_with(key: &IssuerKey, claim: &str, value: Value) -> String {
        let mut all = serde_json::to_value(claims()).unwrap();
        let object = all.as_object_mut().unwrap();
        if value.is_null() {
            object.remove(claim);
        } else {
            object.insert(claim.to_owned(), value);
        }
        let key = EncodingKey::from_ed_der(&key.to_pkcs8());
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &all, &key).unwrap()
    }

    #[test]
    fn a_token_names_one_client_of_one_issuer() {
        let key = IssuerKey::generate();
        let issuers = [issuer(&key)];
        let token = issue(&key, &claims());
        let alice = identify(&issuers, &token, &model(), NOW).unwrap();
        assert_eq!(
            (&*alice.issuer, &*alice.subject),
            ("https://issuer.example", "alice")
        );
        for aud in [json!("digits"), json!(["other", "digits"])] {
            let token = token_with(&key, "aud", aud);
            assert_eq!(identify(&issuers, &token, &model(), NOW), Ok(alice.clone()));
        }
        let of_two = Claims {
            aud: vec!["other".to_owned(), "digits".to_owned()],
            ..claims()
        };
        let token = issue(&key, &of_two);
        for model in ["other", "digits"] {
            let found = identify(&issuers, &token, &model.parse().unwrap(), NOW);
            assert_eq!(found, Ok(alice.clone()), "{model}");
        }
    }

    #[test]
    fn each_token_that_names_nobody_is_told() {
        let (key, other) = (IssuerKey::generate(), IssuerKey::generate());
        let issuers = [issuer(&key)];
        let refused = |token: &str| identify(&issuers, token, &model(), NOW).unwrap_err();
        let with = |claim, value| refused(&token_with(&key, claim, value));
        let good = issue(&key, &claims());

        for text in ["", "a.b.c", "a.b", &good[1..], &good.replace('.', "")] {
            assert_eq!(refused(text), TokenError::Malformed, "{text}");
        }
        assert_eq!(
            refused(&format!("{good}{}", "A".repeat(LONGEST_TOKEN))),
            TokenError::Malformed
        );
        for claim in ["iss", "sub", "aud", "exp"] {
            assert_eq!(with(claim, Value::Null), TokenError::Malformed, "{claim}");
        }
        assert_eq!(with("sub", json!("")), TokenError::Malformed);
        assert_eq!(with("sub", json!("a".repeat(257))), TokenError::Malformed);
        assert_eq!(with("exp", json!("soon")), TokenError::Malformed);
        assert_eq!(with("iss", json!("other")), TokenError::UnknownIssuer);
        assert_eq!(with("aud", json!("other")), TokenError::Audience);
        assert_eq!(with("aud", json!(["a", "b"])), TokenError::Audience);
        assert_eq!(with("exp", json!(NOW)), TokenError::Expired);
        assert_eq!(with("nbf", json!(NOW + 1)), TokenError::NotYet);
        assert_eq!(refused(&issue(&other, &claims())), TokenError::Signature);
        assert_eq!(
            identify(&[], &good, &model(), NOW),
            Err(TokenError::UnknownIssuer)
        );
    }

    #[test]
    fn only_signatures_with_the_issuers_key_hold() {
        let key = IssuerKey::generate();
        let issuers = [issuer(&key)];
        let good = issue(&key, &claims());
        let [_, body, signature] = &*good.split('.').collect::<Vec<_>>() else {
            panic!("three parts");
        };
        let header = |text: &str| URL_SAFE_NO_PAD.encode(text);
        // No signature; and the public key as a shared secret.
        let hmac = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims(),
            &EncodingKey::from_secret(key.public().as_bytes()).unwrap(),
        )
        .unwrap();
        let none = header(r#"{"alg":"none","typ":"JWT"}"#);
        for token in [
            format!("{none}.{body}."),
            format!("{none}.{body}.{signature}"),
            hmac,
        ] {
            let refused = identify(&issuers, &token, &model(), NOW).unwrap_err();
            assert!(
                matches!(refused, TokenError::Signature | TokenError::Malformed),
                "{refused}"
            );
        }
        // Every bit of a token counts.
        for place in 0..good.len() {
            let mut changed = good.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(
                identify(&issuers, &changed, &model(), NOW).is_err(),
                "{place}"
            );
        }
    }

    #[test]
    fn an_issuer_may_have_two_keys_while_one_replaces_the_other() {
        let (old, new) = (IssuerKey::generate(), IssuerKey::generate());
        let issuers = [issuer(&old), issuer(&new)];
        let clients =
            [&old, &new].map(|key| identify(&issuers, &issue(key, &claims()), &model(), NOW));
        assert!(clients[0].is_ok());
        assert_eq!(clients[0], clients[1]);
    }

    #[test]
    fn digests_tell_clients_models_and_owners_apart() {
        let client = |issuer: &str, subject: &str| Client {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
        };
        let (owner, other) = ([1; 32].into(), [2; 32].into());
        let base = client("ab", "c").digest(&owner, &model());
        assert_eq!(client("ab", "c").digest(&owner, &model()), base);
        for digest in [
            client("a", "bc").digest(&owner, &model()),
            client("ab", "d").digest(&owner, &model()),
            client("ab", "c").digest(&other, &model()),
            client("ab", "c").digest(&owner, &"digit".parse().unwrap()),
        ] {
            assert_ne!(digest, base);
        }
    }
}
