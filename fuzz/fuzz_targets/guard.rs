//! What an owner sealed with a model against copying: like the index, its author may be
//! hostile.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_guard::GuardConfiguration;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for read in [
        GuardConfiguration::from_toml(text),
        GuardConfiguration::from_json(text),
    ] {
        // What is taken is sealed, and read back as it was.
        if let Ok(guard) = read {
            assert_eq!(GuardConfiguration::from_json(&guard.to_json()), Ok(guard));
        }
    }
});
