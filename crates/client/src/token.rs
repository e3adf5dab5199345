//! Bearer tokens (RFC 6750, section 2.1): the one that a proxy asks for, and the one that
//! tells a server who asks.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use http::HeaderValue;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Fewer characters can be guessed.
const SHORTEST: usize = 16;

/// A file that is longer is not a token.
const LONGEST: usize = 4096;

/// A secret that requests carry.
pub struct Token(Zeroizing<String>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file holds no token.
    #[error(
        "{} holds no token: expected one line of {SHORTEST} to {LONGEST} visible ASCII characters",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl Token {
    /// Reads a token: one line of 16 to 4096 visible ASCII characters.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let mut text = Zeroizing::new(String::with_capacity(LONGEST + 2));
        let read = File::open(path)
            .and_then(|file| file.take(LONGEST as u64 + 2).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(TokenError::Malformed {
                    path: path.to_owned(),
                });
            }
            Err(source) => {
                return Err(TokenError::Unreadable {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        Self::parse(text.trim_ascii_end()).ok_or_else(|| TokenError::Malformed {
            path: path.to_owned(),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let length = (SHORTEST..=LONGEST).contains(&text.len());
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (length && visible).then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The value of `Authorization` that carries it.
    pub(crate) fn header(&self) -> HeaderValue {
        let text = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        let mut value = HeaderValue::from_str(&text).expect("visible ASCII characters are valid");
        value.set_sensitive(true);
        value
    }

    /// Whether a request's `Authorization` carries it. Compared in constant time: whoever may
    /// send requests may also measure.
    pub(crate) fn is_in(&self, authorization: Option<&HeaderValue>) -> bool {
        let Some((scheme, given)) = authorization
            .map(HeaderValue::as_bytes)
            .and_then(|value| value.split_at_checked(b"bearer ".len()))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(self.0.as_bytes().ct_eq(given))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(contents: &[u8]) -> Result<Token, TokenError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, contents).unwrap();
        Token::read(&path)
    }

    #[test]
    fn a_token_is_found_in_the_header_and_no_other_is() {
        let token = read(b"0123456789abcdef\n").unwrap();
        let is_in = |value: &'static str| token.is_in(Some(&HeaderValue::from_static(value)));
        assert!(is_in("Bearer 0123456789abcdef"));
        assert!(is_in("bearer 0123456789abcdef"));
        for other in [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789abcde",
            "Basic  0123456789abcdef",
            "0123456789abcdef",
            "",
        ] {
            assert!(!is_in(other), "{other}");
        }
        assert!(!token.is_in(None));
    }

    #[test]
    fn short_long_split_and_binary_files_hold_no_token() {
        let long = vec![b'a'; LONGEST + 1];
        for contents in [
            b"".as_slice(),
            b"012345678",
            b"0123456789 abcdef",
            b"0123456789abcdef\n0123456789abcdef",
            b"\xff\xfe0123456789abcdef",
            &long,
        ] {
            assert!(matches!(read(contents), Err(TokenError::Malformed { .. })));
        }
    }

    #[test]
    fn a_token_does_not_print_itself() {
        assert_eq!(
            format!("{:?}", read(b"0123456789abcdef").unwrap()),
            "Token(redacted)"
        );
    }
}
