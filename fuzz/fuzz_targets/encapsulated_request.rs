//! What anybody may post to the channel: bytes that are no encapsulated request,
//! and authentic requests with hostile messages in them.
//!
//! Nothing panics; bytes without a valid encapsulation are never opened; the same
//! request is opened once; and a message that is read means the same when it is
//! written and read again.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use occlude_channel::{Gateway, Kem, Limits, OpenError, Sender};

static GATEWAY: LazyLock<Gateway> =
    LazyLock::new(|| Gateway::new(Kem::X25519, Limits::default()).expect("randomness"));

fuzz_target!(|bytes: &[u8]| {
    assert!(GATEWAY.open(bytes).is_err());
    let _ = Sender::from_key_configurations(bytes);

    // Replaces the key when it has opened enough, as a server does.
    GATEWAY.rotate_if_due(Duration::ZERO).expect("randomness");
    let sender = Sender::from_key_configurations(&GATEWAY.key_configurations())
        .expect("the gateway's own configuration");
    let (wire, _) = sender.seal_message(bytes).expect("any bytes can be sealed");
    let request = match GATEWAY.open(&wire) {
        Ok((request, _)) => request,
        Err(OpenError::Message { .. }) => return,
        Err(other) => panic!("{other:?}"),
    };
    assert!(matches!(GATEWAY.open(&wire), Err(OpenError::Replayed)));

    let (wire, _) = sender.seal(&request).expect("a request that was read");
    let (again, _) = GATEWAY.open(&wire).expect("our own request");
    assert_eq!(again.method(), request.method());
    assert_eq!(again.uri(), request.uri());
    assert_eq!(again.body(), request.body());
});
