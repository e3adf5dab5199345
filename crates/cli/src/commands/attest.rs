//! `occlude attest`

use std::path::Path;

use occlude_attest::{
    AttestationResponse, Attester, Binding, Claims, Collateral, LastingVerifier, Machine, Policy,
    RecordedError, RecordedEvidence, TeeChoice, TeeKind, Trust, UnixTime, VerifiedService,
    Verifier, snp, tpm,
};
use occlude_client::observe;
use serde_json::Value;
use url::Url;

use crate::arguments::{
    AttestAction, AttestArguments, AttestVerifyArguments, CollateralArguments, EvidenceOptions,
    MeasureAction, RecordedArguments,
};
use crate::commands::collateral;
use crate::failure::Failure;
use crate::{commands, output};

pub(crate) async fn run(arguments: AttestArguments) -> Result<(), Failure> {
    match arguments.action {
        AttestAction::Show {
            url,
            collateral,
            json,
        } => {
            let service = observed(&url, &collateral).await?;
            print_service(&service, json)?;
            output::note("occlude: the evidence holds; no policy has judged it");
            Ok(())
        }
        AttestAction::Verify(arguments) => verify(arguments).await,
        AttestAction::Collect {
            tee,
            evidence,
            report_data,
            output,
        } => collect(evidence, tee, &report_data, output.as_deref()),
        AttestAction::Measure { action } => measure(action),
        AttestAction::Collateral { action } => collateral::run(action),
        AttestAction::Pin {
            url,
            collateral,
            simulated,
        } => {
            let service = observed(&url, &collateral).await?;
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

fn collect(
    evidence: EvidenceOptions,
    tee: TeeChoice,
    report_data: &Binding,
    output: Option<&Path>,
) -> Result<(), Failure> {
    let machine = Machine::default()
        .with_evidence_command(evidence.command)
        .with_gpu_evidence_command(evidence.gpu_command)
        .with_tpm(evidence.tpm);
    // Only a server has a configuration, and only the simulated TEE is told one.
    let evidence = Attester::open_on(machine, tee, [0; 32])
        .and_then(|attester| attester.with_additional(&evidence.additional))
        .and_then(|attester| attester.collect(report_data))
        .map_err(Failure::failed)?
        .encode();
    match output {
        Some(path) => commands::write_file(path, &evidence),
        None => {
            output::line(String::from_utf8_lossy(&evidence));
            Ok(())
        }
    }
}

fn measure(action: MeasureAction) -> Result<(), Failure> {
    let policy = match action {
        MeasureAction::Snp(arguments) => {
            let measurement = snp::measure(&snp::LaunchImage {
                firmware: arguments.firmware,
                kernel: arguments.kernel,
                initrd: arguments.initrd,
                command_line: arguments.append,
                processors: arguments.processors,
                processor_type: arguments.processor_type,
                features: arguments.features,
            })
            .map_err(Failure::failed)?;
            Policy::of_launch(&measurement, arguments.owner)
        }
        MeasureAction::Tpm {
            event_log,
            attestation_key,
            owner,
        } => {
            let log = commands::read_file(&event_log, Collateral::MAX_FILE_BYTES)?;
            let registers = tpm::registers_of_log(&log).map_err(|error| {
                Failure::failed(error).while_doing(event_log.display().to_string())
            })?;
            Policy::of_boot(&registers, attestation_key, owner)
        }
    };
    output::line(policy.to_toml().trim_end());
    output::note(
        "occlude: computed, not compared with any machine: review it, then set reviewed = true",
    );
    Ok(())
}

async fn observed(url: &Url, collateral: &CollateralArguments) -> Result<VerifiedService, Failure> {
    observe(url, &commands::client_options(collateral))
        .await
        .map_err(commands::client_failure)
}

async fn verify(arguments: AttestVerifyArguments) -> Result<(), Failure> {
    let policy = commands::client_policy(&arguments.policy)?;
    let collateral = &arguments.policy.collateral;
    match (&arguments.url, &arguments.recorded.evidence) {
        (Some(url), _) => {
            let service = observed(url, collateral).await?;
            policy
                .judge_service(&service)
                .map_err(|refusal| Failure::refused(refusal).while_doing(url.to_string()))?;
            print_service(&service, arguments.json)?;
        }
        (None, Some(file)) => {
            let verifier = LastingVerifier::new(collateral.collateral.clone())
                .current()
                .map_err(Failure::failed)?;
            let recorded = &arguments.recorded;
            verify_recorded(file, recorded, &verifier, &policy, arguments.json)
                .map_err(|failure| failure.while_doing(file.display().to_string()))?;
        }
        (None, None) => unreachable!("one of the two is required"),
    }
    output::note("occlude: the evidence holds, and the policy accepts it");
    Ok(())
}

fn verify_recorded(
    file: &Path,
    arguments: &RecordedArguments,
    verifier: &Verifier,
    policy: &Policy,
    json: bool,
) -> Result<(), Failure> {
    let bytes = commands::read_file(file, RecordedEvidence::MAX_FILE_BYTES)?;
    let recorded = read_recorded(&bytes, arguments.tee)?;
    let at = arguments.at.unwrap_or_else(UnixTime::now);
    if let Some(nonce) = &arguments.nonce {
        let statement = match &arguments.statement {
            Some(path) => Some(commands::read_file(path, Collateral::MAX_FILE_BYTES)?),
            None => recorded.statement,
        };
        let statement = statement.ok_or_else(|| {
            Failure::usage("the file has no statement of the server: give it with --statement")
        })?;
        let service = AttestationResponse::new(statement, recorded.evidence)
            .verify(verifier, nonce, at)
            .map_err(Failure::refused)?;
        policy.judge_service(&service).map_err(Failure::refused)?;
        return print_service(&service, json);
    }
    let genuine = verifier
        .authenticate(&recorded.evidence, at)
        .map_err(Failure::refused)?;
    let Some(binding) = &arguments.report_data else {
        print_claims(&genuine.unbound_claims(), json)?;
        return Err(Failure::refused(anyhow::anyhow!(
            "binding not checked: the evidence is genuine and may have been recorded anywhere; give --report-data, or --nonce and --statement"
        )));
    };
    let claims = genuine.bound_to(binding).map_err(Failure::refused)?;
    policy.judge_claims(&claims).map_err(Failure::refused)?;
    print_claims(&claims, json)
}

/// Evidence in a file's bytes.
pub(super) fn read_recorded(
    bytes: &[u8],
    tee: Option<TeeKind>,
) -> Result<RecordedEvidence, Failure> {
    RecordedEvidence::read(bytes, tee).map_err(|error| match error {
        RecordedError::KindMissing => Failure::usage(error.to_string()),
        _ => Failure::refused(error),
    })
}

fn print_service(service: &VerifiedService, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(service);
    }
    let (claims, statement) = (service.claims(), service.statement());
    let mut rows = rows(claims)?;
    rows.extend(
        statement
            .owners
            .iter()
            .map(|owner| ("owner".to_owned(), owner.to_string())),
    );
    for model in &statement.models {
        let served = format!(
            "{} version {} {} guard {}",
            model.id, model.version, model.header_digest, model.guard
        );
        rows.push(("model".to_owned(), served));
    }
    let configuration = serde_json::to_value(&statement.configuration).map_err(Failure::failed)?;
    for (name, value) in configuration.as_object().into_iter().flatten() {
        rows.push(("setting".to_owned(), format!("{name} = {value}")));
    }
    print(claims, &rows);
    Ok(())
}

fn print_claims(claims: &Claims, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(claims);
    }
    print(claims, &rows(claims)?);
    Ok(())
}

/// Every claim: what all evidence says first, then what only that kind of TEE has.
fn rows(claims: &Claims) -> Result<Vec<(String, String)>, Failure> {
    let mut rows: Vec<(String, String)> = [
        ("tee", claims.tee().to_string()),
        ("trust", claims.trust().to_string()),
        ("protection", claims.protection().to_string()),
        ("measurement", claims.measurement().to_string()),
        ("debug", claims.debug().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if let Some(configuration) = claims.configuration() {
        rows.push(("configuration".to_owned(), configuration.to_string()));
    }
    if let Some(until) = claims.collateral_until() {
        rows.push(("collateral until".to_owned(), until.to_string()));
    }
    let platform = serde_json::to_value(claims.platform()).map_err(Failure::failed)?;
    add_rows(None, &platform, &mut rows);
    for part in claims.additional() {
        let kind = part.tee().to_string();
        for (name, value) in self::rows(part)? {
            // Rows of its platform name it already.
            let named = match name.as_str() {
                "tee" => continue,
                name if name.starts_with(&kind) => name.to_owned(),
                name => format!("{kind} {name}"),
            };
            rows.push((named, value));
        }
    }
    Ok(rows)
}

/// A key that puts `pcr2` before `pcr10`.
fn in_order(name: &str) -> (&str, Option<u64>) {
    let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (text, number) = name.split_at(digits);
    (text, number.parse().ok())
}

/// A row for each value of an object, named by the way to it; objects of a list by their
/// numbers, from 1.
fn add_rows(name: Option<&str>, value: &Value, rows: &mut Vec<(String, String)>) {
    match (name, value) {
        (_, Value::Object(fields)) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(field, _)| in_order(field));
            for (field, value) in fields {
                let name = name.map_or_else(|| field.clone(), |name| format!("{name} {field}"));
                add_rows(Some(&name.replace('-', " ")), value, rows);
            }
        }
        (Some(name), Value::Array(items)) if items.iter().any(Value::is_object) => {
            for (index, item) in items.iter().enumerate() {
                add_rows(Some(&format!("{name} {}", index + 1)), item, rows);
            }
        }
        (Some(_), Value::Null) | (None, _) => {}
        (Some(name), Value::String(text)) => rows.push((name.to_owned(), text.clone())),
        (Some(name), other) => rows.push((name.to_owned(), other.to_string())),
    }
}

fn print(claims: &Claims, rows: &[(String, String)]) {
    if claims.trust() == Trust::Simulated {
        output::note("occlude: the TEE is SIMULATED: this evidence proves nothing");
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        output::line(format_args!("{name:width$}  {value}"));
    }
}
