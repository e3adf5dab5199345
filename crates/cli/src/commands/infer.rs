//! `occlude infer`

use occlude_client::Client;
use occlude_inference_protocol::{InferRequest, Parameter};

use crate::arguments::InferArguments;
use crate::commands;
use crate::failure::Failure;
use crate::tensors::{self, InputFile};

pub(crate) async fn run(arguments: InferArguments) -> Result<(), Failure> {
    let inputs = arguments
        .input
        .iter()
        .map(|input| {
            input
                .parse::<InputFile>()
                .map_err(|error| Failure::usage(error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(output) = &arguments.output {
        tensors::check_output(output).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let policy = commands::client_policy(&arguments.policy)?;
    let options = commands::asker_options(&arguments.policy.collateral, &arguments.asker)?;
    let client = Client::connect(&arguments.url, policy, &options)
        .await
        .map_err(commands::client_failure)?;
    let metadata = client
        .model_metadata(&arguments.model, arguments.version)
        .await
        .map_err(commands::client_failure)?;
    let changed = metadata.parameters.get("answers_may_be_changed");
    if let Some(Parameter::Text(guard)) = metadata.parameters.get("guard")
        && changed == Some(&Parameter::Boolean(true))
    {
        crate::output::note(format_args!(
            "occlude: model {} has the guard {guard:?}: its answers may be changed on purpose",
            arguments.model
        ));
    }
    let inputs = inputs
        .iter()
        .map(|input| input.read(&metadata.inputs).map_err(Failure::failed))
        .collect::<Result<Vec<_>, _>>()?;
    let request = InferRequest {
        inputs,
        ..InferRequest::default()
    };
    let response = client
        .infer(&arguments.model, arguments.version, &request)
        .await
        .map_err(commands::client_failure)?;
    match &arguments.output {
        Some(path) => tensors::write(path, &response.outputs).map_err(Failure::failed),
        None if arguments.json => {
            let json = tensors::to_json(&response.outputs).map_err(Failure::failed)?;
            crate::output::json(&json)
        }
        None => tensors::print_table(&response.outputs).map_err(Failure::failed),
    }
}
