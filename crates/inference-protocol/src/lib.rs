//! Open Inference Protocol v2 messages: tensors, JSON and the binary tensor extension.
