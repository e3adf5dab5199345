//! Binary HTTP messages of known length (RFC 9292, section 3.1), padded.
//!
//! What arrives here is authentic but its author may be anybody: each length is
//! held against its limit before the part is read. The content is never copied,
//! it is a slice of the one plaintext buffer.

use std::io::Cursor;

use bhttp::{ControlData, FieldSection, Mode, StatusCode};
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response};
use zeroize::Zeroizing;

use crate::padding::{pad, padded_length};
use crate::{MAXIMUM_HEADER_BYTES, MAXIMUM_HEADER_FIELDS, MAXIMUM_TARGET_BYTES, MessageError};

/// Framing indicator of a request of known length.
const REQUEST: u64 = 0;
/// Framing indicator of a response of known length.
const RESPONSE: u64 = 1;

/// Fields about a connection (RFC 9110, section 7.6.1), which stay where the connection is.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The longest variable-length integer (RFC 9000, section 16).
const LONGEST_INTEGER: usize = 8;

pub(crate) fn encode_request(request: &Request<Bytes>) -> Result<Zeroizing<Vec<u8>>, MessageError> {
    if request.method() == Method::CONNECT {
        return Err(MessageError::Method);
    }
    let uri = request.uri();
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = if path.is_empty() { "/" } else { path };
    let parts = [
        request.method().as_str(),
        uri.scheme_str().unwrap_or("https"),
        uri.authority().map_or("", Authority::as_str),
        path,
    ];
    for part in parts {
        within(to_u64(part.len()), MAXIMUM_TARGET_BYTES, |found| {
            MessageError::TargetTooLong { found }
        })?;
    }
    let [method, scheme, authority, path] = parts.map(|part| part.as_bytes().to_vec());
    check_target(&scheme, &path)?;
    let control = ControlData::Request {
        method,
        scheme,
        authority,
        path,
    };
    encode(REQUEST, &control, request.headers(), request.body())
}

pub(crate) fn encode_response(
    response: &Response<Bytes>,
) -> Result<Zeroizing<Vec<u8>>, MessageError> {
    let status = response.status().as_u16();
    let found = u64::from(status);
    let control = StatusCode::try_from(status)
        .ok()
        .filter(|status| !status.informational())
        .map(ControlData::Response)
        .ok_or(MessageError::Status { found })?;
    encode(RESPONSE, &control, response.headers(), response.body())
}

pub(crate) fn decode_request(message: &Bytes) -> Result<Request<Bytes>, MessageError> {
    let mut parts = Parts::new(message);
    parts.framing(REQUEST)?;
    let control = parts.request_line()?;
    let (ControlData::Request { method, .. }, Some(path)) = (&control, control.path()) else {
        return Err(MessageError::Target);
    };
    let method = Method::from_bytes(method).map_err(|_| MessageError::Method)?;
    if method == Method::CONNECT {
        return Err(MessageError::Method);
    }
    let uri = target(
        control.scheme().unwrap_or_default(),
        control.authority(),
        path,
    )?;
    let (headers, content) = parts.headers_and_content()?;
    let mut request = Request::new(message.slice(content));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

pub(crate) fn decode_response(message: &Bytes) -> Result<Response<Bytes>, MessageError> {
    let mut parts = Parts::new(message);
    parts.framing(RESPONSE)?;
    let found = parts.integer()?;
    let status = StatusCode::try_from(found)
        .ok()
        .filter(|status| !status.informational())
        .and_then(|status| http::StatusCode::from_u16(status.code()).ok())
        .ok_or(MessageError::Status { found })?;
    let (headers, content) = parts.headers_and_content()?;
    let mut response = Response::new(message.slice(content));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn encode(
    framing: u64,
    control: &ControlData,
    headers: &HeaderMap,
    content: &[u8],
) -> Result<Zeroizing<Vec<u8>>, MessageError> {
    let mut fields = FieldSection::default();
    let sent = headers
        .iter()
        .filter(|(name, _)| !is_connection_field(name) && *name != CONTENT_LENGTH);
    for (name, value) in sent {
        fields.put(name.as_str(), value.as_bytes());
    }
    check_count(fields.len())?;
    // Enough that it does not move while header fields, perhaps secret, are in it.
    let mut head = Zeroizing::new(Vec::with_capacity(
        4 * MAXIMUM_TARGET_BYTES + 2 * MAXIMUM_HEADER_BYTES,
    ));
    write_integer(framing, &mut head);
    // Writing to memory cannot fail; the lengths were checked above.
    let written = control.write_bhttp(&mut *head);
    debug_assert!(written.is_ok());
    let before = head.len();
    let written = fields.write_bhttp(Mode::KnownLength, &mut *head);
    debug_assert!(written.is_ok());
    within(to_u64(head.len() - before), MAXIMUM_HEADER_BYTES, |found| {
        MessageError::HeaderTooLarge { found }
    })?;
    write_integer(to_u64(content.len()), &mut head);

    const NO_TRAILERS: usize = 1;
    let length = head.len() + content.len() + NO_TRAILERS;
    let mut message = Zeroizing::new(Vec::with_capacity(padded_length(length)));
    message.extend_from_slice(&head);
    message.extend_from_slice(content);
    write_integer(0, &mut message);
    pad(&mut message);
    Ok(message)
}

/// Walks a message part by part.
struct Parts<'a> {
    message: &'a [u8],
    position: usize,
}

impl<'a> Parts<'a> {
    fn new(message: &'a [u8]) -> Self {
        Self {
            message,
            position: 0,
        }
    }

    fn framing(&mut self, expected: u64) -> Result<(), MessageError> {
        let found = self.integer()?;
        if found == expected {
            Ok(())
        } else {
            Err(MessageError::Framing { expected, found })
        }
    }

    fn request_line(&mut self) -> Result<ControlData, MessageError> {
        let start = self.position;
        for _part in ["method", "scheme", "authority", "path"] {
            self.part(MAXIMUM_TARGET_BYTES, |found| MessageError::TargetTooLong {
                found,
            })?;
        }
        let mut line = Cursor::new(&self.message[start..self.position]);
        ControlData::read_bhttp(true, &mut line).map_err(|_| MessageError::Truncated)
    }

    /// What follows the control data: header fields, the content's place, no trailers, and zeros.
    fn headers_and_content(mut self) -> Result<(HeaderMap, std::ops::Range<usize>), MessageError> {
        // Parts at the end that are empty may be left out (RFC 9292, section 3.8).
        let start = self.position;
        let fields = if self.is_at_end() {
            FieldSection::default()
        } else {
            self.part(MAXIMUM_HEADER_BYTES, |found| MessageError::HeaderTooLarge {
                found,
            })?;
            let mut section = Cursor::new(&self.message[start..self.position]);
            FieldSection::read_bhttp(Mode::KnownLength, &mut section)
                .map_err(|_| MessageError::Truncated)?
        };
        let content = if self.is_at_end() {
            self.position..self.position
        } else {
            self.part(usize::MAX, |_| MessageError::Truncated)?
        };
        if !self.is_at_end() && self.integer()? != 0 {
            return Err(MessageError::Trailers);
        }
        let padding = &self.message[self.position..];
        if let Some(position) = padding.iter().position(|&byte| byte != 0) {
            return Err(MessageError::Padding { position });
        }
        Ok((header_map(&fields, content.len())?, content))
    }

    /// A part with its length before it; gives its place.
    fn part(
        &mut self,
        limit: usize,
        too_long: impl FnOnce(u64) -> MessageError,
    ) -> Result<std::ops::Range<usize>, MessageError> {
        let length = self.integer()?;
        let length = within(length, limit, too_long)?;
        let start = self.position;
        let end = start
            .checked_add(length)
            .filter(|&end| end <= self.message.len())
            .ok_or(MessageError::Truncated)?;
        self.position = end;
        Ok(start..end)
    }

    fn integer(&mut self) -> Result<u64, MessageError> {
        let rest = &self.message[self.position..];
        let first = *rest.first().ok_or(MessageError::Truncated)?;
        let length = 1 << (first >> 6);
        let bytes = rest.get(1..length).ok_or(MessageError::Truncated)?;
        self.position += length;
        Ok(bytes.iter().fold(u64::from(first & 0x3f), |value, &byte| {
            value << 8 | u64::from(byte)
        }))
    }

    fn is_at_end(&self) -> bool {
        self.position == self.message.len()
    }
}

/// Writes a variable-length integer (RFC 9000, section 16) in its shortest form.
fn write_integer(value: u64, into: &mut Vec<u8>) {
    let bytes = value.to_be_bytes();
    let (length, mark) = match value {
        0..0x40 => (1, 0x00),
        0x40..0x4000 => (2, 0x40),
        0x4000..0x4000_0000 => (4, 0x80),
        // No length in memory comes near 2^62.
        _ => (LONGEST_INTEGER, 0xc0),
    };
    let start = into.len();
    into.extend_from_slice(&bytes[LONGEST_INTEGER - length..]);
    into[start] |= mark;
}

fn header_map(fields: &FieldSection, content_length: usize) -> Result<HeaderMap, MessageError> {
    check_count(fields.len())?;
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (index, field) in fields.iter().enumerate() {
        let malformed = |()| MessageError::Field { index };
        let name = HeaderName::from_lowercase(field.name()).map_err(|_| malformed(()))?;
        let value = HeaderValue::from_bytes(field.value()).map_err(|_| malformed(()))?;
        if is_connection_field(&name) {
            return Err(MessageError::ConnectionField { index });
        }
        if name == CONTENT_LENGTH && value != content_length.to_string() {
            return Err(MessageError::ContentLength {
                found: content_length,
            });
        }
        headers.append(name, value);
    }
    Ok(headers)
}

fn is_connection_field(name: &HeaderName) -> bool {
    [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ]
    .contains(name)
}

fn check_count(found: usize) -> Result<(), MessageError> {
    if found > MAXIMUM_HEADER_FIELDS {
        return Err(MessageError::TooManyFields { found });
    }
    Ok(())
}

fn check_target(scheme: &[u8], path: &[u8]) -> Result<(), MessageError> {
    if matches!(scheme, b"http" | b"https") && path.starts_with(b"/") {
        Ok(())
    } else {
        Err(MessageError::Target)
    }
}

fn target(scheme: &[u8], authority: Option<&[u8]>, path: &[u8]) -> Result<Uri, MessageError> {
    check_target(scheme, path)?;
    let path_and_query = PathAndQuery::try_from(path)
        .ok()
        // The parser drops a fragment, which no request line has.
        .filter(|parsed| parsed.as_str().as_bytes() == path)
        .ok_or(MessageError::Target)?;
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path_and_query);
    if let Some(authority) = authority {
        parts.scheme = Some(Scheme::try_from(scheme).map_err(|_| MessageError::Target)?);
        parts.authority = Some(Authority::try_from(authority).map_err(|_| MessageError::Target)?);
    }
    Uri::from_parts(parts).map_err(|_| MessageError::Target)
}

/// A length that came from outside, if it is within its limit.
fn within(
    length: u64,
    limit: usize,
    too_long: impl FnOnce(u64) -> MessageError,
) -> Result<usize, MessageError> {
    usize::try_from(length)
        .ok()
        .filter(|&length| length <= limit)
        .ok_or_else(|| too_long(length))
}

/// Lossless on every platform that has the memory for what is measured.
fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
