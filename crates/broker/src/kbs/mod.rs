//! The Confidential Containers KBS protocol, version 0.4.0, as Trustee speaks it:
//! request, challenge, attestation, resource.
//!
//! [`messages`] has the parts that `kbs-types` lacks, [`report_data`] what evidence
//! is bound to, [`jwe`] how a resource travels. Both sides use them; neither
//! believes the other.

pub mod jwe;
pub mod messages;
pub mod report_data;
