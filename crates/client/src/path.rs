//! Which model a request's path names.
//!
//! The policy judges the name before anything is sent, so it is read here as the
//! server's router reads it: split at slashes first, then each part percent-decoded
//! once (RFC 3986, section 2.4). Where the two could differ this side sees a model
//! more, never one less: `/v2/%6Dodels/x` names none for the server.

use occlude_keys::{ModelId, ModelIdError};
use percent_encoding::percent_decode_str;

/// The model that a path names: `/v2/models/{id}` and what is below it. `None` if it
/// names none, as `/v2` and `/v2/health/live`.
///
/// # Errors
/// [`ModelIdError`] if something else stands where the id belongs. Bytes that are
/// not UTF-8 become U+FFFD, which no id has.
pub(crate) fn named_model(path: &str) -> Result<Option<ModelId>, ModelIdError> {
    let mut parts = path
        .split('/')
        .map(|part| percent_decode_str(part).decode_utf8_lossy());
    for expected in ["", "v2", "models"] {
        if parts.next().as_deref() != Some(expected) {
            return Ok(None);
        }
    }
    parts.next().map(|part| part.parse()).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_below_models_however_it_is_spelled() {
        for path in [
            "/v2/models/digits",
            "/v2/models/digits/",
            "/v2/models/digits/infer",
            "/v2/models/digits/versions/3/infer",
            "/v2/models/%64igits",
            "/%76%32/%6Dodels/d%69gits/x",
        ] {
            let digits = "digits".parse().unwrap();
            assert_eq!(named_model(path), Ok(Some(digits)), "{path}");
        }
    }

    #[test]
    fn other_paths_name_no_model() {
        for path in [
            "",
            "/",
            "*",
            "/v2",
            "/v2/",
            "/v2/health/ready",
            "/v2/models",
            "/v2/model/digits",
            "/v2//models/digits",
            "/V2/models/digits",
            "/x/v2/models/digits",
            "v2/models/digits",
        ] {
            assert_eq!(named_model(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_part_is_decoded_once_and_after_the_path_is_split() {
        for (path, found) in [
            ("/v2/models/", ""),
            ("/v2/models//digits", ""),
            ("/v2/models/%2564igits", "%64igits"),
            ("/v2/models/digits%2Finfer", "digits/infer"),
            ("/v2/models/%FF", "\u{fffd}"),
            ("/v2/models/%", "%"),
        ] {
            assert_eq!(named_model(path).unwrap_err().found, found, "{path}");
        }
    }
}
