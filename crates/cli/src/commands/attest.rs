//! `occlude attest`

use occlude_attest::{Policy, Trust, VerifiedService};
use occlude_client::{ClientOptions, observe};
use url::Url;

use crate::arguments::{AttestAction, AttestArguments};
use crate::failure::Failure;
use crate::{commands, output};

pub(crate) async fn run(arguments: AttestArguments) -> Result<(), Failure> {
    match arguments.action {
        AttestAction::Show { url, json } => {
            let service = observed(&url).await?;
            print(&service, json)?;
            output::note("occlude: the evidence holds; no policy has judged it");
            Ok(())
        }
        AttestAction::Verify { url, policy, json } => {
            let policy = commands::client_policy(&policy)?;
            let service = observed(&url).await?;
            policy
                .judge_service(&service)
                .map_err(|refusal| Failure::refused(refusal).while_doing(url.to_string()))?;
            print(&service, json)?;
            output::note("occlude: the evidence holds, and the policy accepts it");
            Ok(())
        }
        AttestAction::Pin { url, simulated } => {
            let service = observed(&url).await?;
            if service.claims().trust() == Trust::Simulated && !simulated {
                return Err(Failure::refused(anyhow::anyhow!(
                    "{url} shows simulated evidence, which anybody can forge: pin it only for tests, with --simulated"
                )));
            }
            output::line(Policy::pin(&service).to_toml().trim_end());
            output::note(
                "occlude: trust on first use: compare the measurement with a build of your own, then set reviewed = true",
            );
            Ok(())
        }
    }
}

async fn observed(url: &Url) -> Result<VerifiedService, Failure> {
    observe(url, &ClientOptions::default())
        .await
        .map_err(commands::client_failure)
}

fn print(service: &VerifiedService, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(service);
    }
    let (claims, statement) = (service.claims(), service.statement());
    if claims.trust() == Trust::Simulated {
        output::note("occlude: the TEE is SIMULATED: this evidence proves nothing");
    }
    let mut rows = vec![
        ("tee", claims.tee().to_string()),
        ("trust", claims.trust().to_string()),
        ("protection", claims.protection().to_string()),
        ("measurement", claims.measurement().to_string()),
        ("security version", claims.tcb().to_string()),
        ("debug", claims.debug().to_string()),
    ];
    if let Some(configuration) = claims.configuration() {
        rows.push(("configuration", configuration.to_string()));
    }
    rows.extend(
        statement
            .owners
            .iter()
            .map(|owner| ("owner", owner.to_string())),
    );
    for model in &statement.models {
        rows.push((
            "model",
            format!(
                "{} version {} {}",
                model.id, model.version, model.header_digest
            ),
        ));
    }
    let configuration = serde_json::to_value(&statement.configuration).map_err(Failure::failed)?;
    for (name, value) in configuration.as_object().into_iter().flatten() {
        rows.push(("setting", format!("{name} = {value}")));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        output::line(format_args!("{name:width$}  {value}"));
    }
    Ok(())
}
