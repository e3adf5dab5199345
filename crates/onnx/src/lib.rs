//! ONNX protobufs: typed messages, and a walker that never decodes weights.
