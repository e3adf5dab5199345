//! Evidence of a trusted execution environment, verified into claims, judged by policy.
