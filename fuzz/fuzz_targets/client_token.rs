//! A token that says who a client is: as it comes, and with claims that an issuer signed.
#![no_main]

use std::sync::LazyLock;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use libfuzzer_sys::fuzz_target;
use occlude_guard::GuardConfiguration;
use occlude_keys::{IssuerKey, ModelId};
use serde_json::Value;

const NOW: u64 = 1_800_000_000;

static WORLD: LazyLock<(IssuerKey, GuardConfiguration, ModelId)> = LazyLock::new(|| {
    let key = IssuerKey::generate();
    let guard = format!(
        "format = 1\noutput = \"p\"\n[budgets]\nwindow-seconds = 60\n\
         client = {{ total = 1 }}\n[[issuers]]\nname = \"i\"\nkey = \"\"\"\n{}\"\"\"\n",
        key.public()
    );
    let guard = GuardConfiguration::from_toml(&guard).expect("a guard");
    (key, guard, "digits".parse().expect("an id"))
});

fuzz_target!(|bytes: &[u8]| {
    let (key, guard, model) = &*WORLD;
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Nobody signed it.
    assert!(guard.identify(text, model, NOW).is_err());
    if let Ok(claims) = serde_json::from_str::<Value>(text) {
        let key = EncodingKey::from_ed_der(&key.to_pkcs8());
        let header = Header::new(Algorithm::EdDSA);
        let token = jsonwebtoken::encode(&header, &claims, &key).expect("JSON is signed");
        if guard.identify(&token, model, NOW).is_ok() {
            assert_eq!(claims["iss"], "i");
            assert!(claims["exp"].as_u64().is_some_and(|end| NOW < end));
            assert!(claims["nbf"].as_u64().is_none_or(|begin| begin <= NOW));
        }
    }
});
