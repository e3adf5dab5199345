//! How large a hostile model may make us grow.

/// Messages inside messages. Protobuf's own readers stop at 100, so no runtime
/// would load a deeper model; a subgraph costs three.
pub const NESTING: u32 = 96;

/// Bytes of a model without its payloads. Half a GiB, because tree ensembles keep
/// their trees in attributes; protobuf itself stops at 2 GiB.
pub const SKELETON: u64 = 512 << 20;

/// Tensors in one model: a hundred times what the largest published models hold.
pub const TENSORS: u64 = 1 << 20;

/// Extents of one tensor: ONNX Runtime and `NumPy` stop at 64 or below.
pub const RANK: usize = 64;

/// Bytes of a tensor's name or of an external path (Linux's `PATH_MAX`).
pub const NAME: u64 = 4096;

/// Pieces that one tensor's values may be scattered over. Writers pack them into
/// one; a small tensor left unpacked stays inline and never gets here.
pub const RUNS: usize = 1 << 16;

/// Entries of `external_data` of one tensor: the specification has four.
pub const EXTERNAL_ENTRIES: usize = 16;
