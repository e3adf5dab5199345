//! JSON with exactly one encoding.
//!
//! Compact, keys sorted, integers and strings as RFC 8785 writes them (integers
//! past 2^53 in full). What does not re-encode to the very bytes it was read from
//! is refused: white space, another order, a repeated key, an escape that was not
//! needed, a fraction, a capital hexadecimal digit. So a byte that changes never goes
//! unnoticed, and what is hashed is what was understood.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::VerifyError;

/// Why bytes are not the encoding of anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than any honest one.
    #[error("{found} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
        /// How many bytes came.
        found: usize,
    },
    /// Not JSON, or not of the right shape.
    #[error("malformed: {reason}")]
    Malformed {
        /// What the parser says, cut to 200 characters.
        reason: String,
    },
    /// The right content in another spelling than the one allowed.
    #[error("not in canonical form: compact JSON, keys sorted, integers only")]
    NotCanonical,
}

/// What a parser says, cut to 200 characters: part of it is what the peer sent.
pub(crate) fn reason(error: &dyn std::fmt::Display) -> String {
    error.to_string().chars().take(200).collect()
}

/// Encodes what has only string keys and no fallible parts, as all our types.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    print(to_value(value))
}

pub(crate) fn decode<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    limit: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge {
            limit,
            found: bytes.len(),
        });
    }
    let decoded: T = serde_json::from_slice(bytes).map_err(|error| DecodeError::Malformed {
        reason: reason(&error),
    })?;
    let value = to_value(&decoded);
    if !all_numbers_are_integers(&value) || print(value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(decoded)
}

fn to_value<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("our types all have a JSON form")
}

fn print(mut value: Value) -> Vec<u8> {
    value.sort_all_objects();
    value.to_string().into_bytes()
}

/// A fraction has several spellings, and nothing here needs one.
fn all_numbers_are_integers(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(items) => items.iter().all(all_numbers_are_integers),
        Value::Object(fields) => fields.values().all(all_numbers_are_integers),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// Reads a body, and refuses what the parser skipped: every part of `sent` must be in
/// what it made of that, written again. So no byte of what is sent is without effect.
/// Fields that may be missing may be.
pub(crate) fn understood<T: Serialize + DeserializeOwned>(sent: &Value) -> Result<T, VerifyError> {
    let malformed = |error: serde_json::Error| VerifyError::Malformed {
        reason: reason(&error),
    };
    let parsed = T::deserialize(sent).map_err(malformed)?;
    let understood = serde_json::to_value(&parsed).map_err(malformed)?;
    if !is_part(sent, &understood) {
        return Err(VerifyError::Malformed {
            reason: "it has fields that this version does not know".to_owned(),
        });
    }
    Ok(parsed)
}

/// Decodes a field of padded standard base64.
pub(crate) fn from_base64(field: &str, text: &str) -> Result<Vec<u8>, VerifyError> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    STANDARD
        .decode(text)
        .map_err(|error| VerifyError::Malformed {
            reason: format!("{field}: {}", reason(&error)),
        })
}

fn is_part(sent: &Value, understood: &Value) -> bool {
    match (sent, understood) {
        (Value::Object(sent), Value::Object(understood)) => sent.iter().all(|(name, value)| {
            understood
                .get(name)
                .is_some_and(|understood| is_part(value, understood))
        }),
        (Value::Array(sent), Value::Array(understood)) => {
            sent.len() == understood.len()
                && sent
                    .iter()
                    .zip(understood)
                    .all(|(sent, understood)| is_part(sent, understood))
        }
        (sent, understood) => sent == understood,
    }
}

/// Bytes as padded standard base64 (RFC 4648, section 4), strictly.
pub(crate) mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_and_large_integers_stay_exact() {
        let value = json!({"b": u64::MAX, "a": {"d": [true, null], "c": "\u{7}\"/ä"}});
        assert_eq!(
            String::from_utf8(encode(&value)).unwrap(),
            r#"{"a":{"c":"\u0007\"/ä","d":[true,null]},"b":18446744073709551615}"#
        );
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for text in [
            r#"{"a": 1}"#,
            r#"{"a":1} "#,
            r#"{"b":1,"a":1}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"\u0061":1}"#,
            r#"{"a":-0}"#,
            r#"{"a":1e0}"#,
            r#"{"a":1.0}"#,
            r#"{"a":[0.5]}"#,
            r#"{"a":"\/"}"#,
        ] {
            assert_eq!(
                decode::<Value>(text.as_bytes(), 100),
                Err(DecodeError::NotCanonical),
                "{text}"
            );
        }
    }

    #[test]
    fn too_many_bytes_are_not_even_parsed() {
        assert_eq!(
            decode::<Value>(b"[[[[", 3),
            Err(DecodeError::TooLarge { limit: 3, found: 4 })
        );
    }

    #[test]
    fn nesting_without_end_is_refused() {
        assert_eq!(
            decode::<Value>(&[b'['; 4000], 4000),
            Err(DecodeError::Malformed {
                reason: "recursion limit exceeded at line 1 column 128".to_owned()
            })
        );
    }
}
