//! Holds model keys and releases them to evidence that satisfies the owner's policy.
