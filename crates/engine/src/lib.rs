//! Runs opened models with ONNX Runtime, with weights in memory that it borrows.
