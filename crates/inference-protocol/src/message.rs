//! The two messages of an inference: request and response.

use crate::{Parameter, Parameters, Tensor};

/// The request's parameter that asks for every output as binary data.
pub(crate) const BINARY_DATA_OUTPUT: &str = "binary_data_output";
/// A requested output's parameter that asks for it as binary data or as JSON.
pub(crate) const BINARY_DATA: &str = "binary_data";
/// A tensor's parameter that gives the size of its binary data in bytes.
pub(crate) const BINARY_DATA_SIZE: &str = "binary_data_size";

/// A request to run a model (`$inference_request`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// To be returned in the response.
    pub id: Option<String>,
    /// The request's parameters, `binary_data_output` left out.
    pub parameters: Parameters,
    /// The inputs, each name once.
    pub inputs: Vec<Tensor>,
    /// The outputs asked for; none means every output of the model.
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs should travel as binary data where they do not say themselves.
    pub binary_data_output: bool,
}

/// An output that a request asks for (`$request_output`).
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedOutput {
    /// Its name.
    pub name: String,
    /// Whether it should travel as binary data, if it says.
    pub binary_data: Option<bool>,
    /// Its other parameters.
    pub parameters: Parameters,
}

impl RequestedOutput {
    /// Asks for an output in the request's own way.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            binary_data: None,
            parameters: Parameters::default(),
        }
    }
}

impl InferRequest {
    /// Whether the output of that name should travel as binary data: what the output says, else
    /// what the request says, else no.
    #[must_use]
    pub fn wants_binary(&self, output: &str) -> bool {
        self.outputs
            .iter()
            .find(|requested| requested.name == output)
            .and_then(|requested| requested.binary_data)
            .unwrap_or(self.binary_data_output)
    }

    pub(crate) fn wire_parameters(&self) -> Parameters {
        let mut parameters = self.parameters.clone();
        if self.binary_data_output {
            parameters.set(BINARY_DATA_OUTPUT, Parameter::Boolean(true));
        }
        parameters
    }
}

/// What a model answered (`$inference_response`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferResponse {
    /// The model's name; empty where a server left it out, as Triton's examples do.
    pub model_name: String,
    /// The version that ran.
    pub model_version: Option<String>,
    /// The request's id.
    pub id: Option<String>,
    /// The response's parameters.
    pub parameters: Parameters,
    /// The outputs, each name once.
    pub outputs: Vec<Tensor>,
}

impl InferResponse {
    /// The output of that name.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|output| output.name() == name)
    }
}
