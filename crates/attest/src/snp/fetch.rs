//! What AMD publishes for a chip (AMD 57230, "VCEK Certificate and KDS Interface
//! Specification", chapter 4).

use serde_json::Value;

use super::report::{Body, Report};
use super::{SnpProduct, SnpTcb};
use crate::fetch::{Client, FetchError, Wanted, unusable};
use crate::{VerifyError, canonical};

/// The certificate of the chip's key for the firmware that a report speaks of, and the list
/// of those that were taken back.
pub(crate) fn wanted(body: &Value) -> Result<Vec<Wanted>, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let report = Report::from_fields(&body.attestation_report)?;
    let fields = &report.fields;
    let products = products(&report);
    let tcb = super::verify::tcb_of(&fields.reported_tcb);
    let mut wanted = Vec::new();
    // Nobody publishes the keys that clouds load into chips (VLEK): the host has them.
    let of_cloud = fields.key_info.signing_key() == 1;
    if !of_cloud {
        let chip = chip(&fields.chip_id, &products);
        let products = products.clone();
        wanted.push(Wanted {
            name: format!("amd/vcek-{chip}-{}.der", file_name(&tcb)),
            get: Box::new(move |client| vcek(client, &products, &chip, &tcb)),
        });
    }
    let kind = if of_cloud { "vlek" } else { "vcek" };
    for product in products {
        wanted.push(Wanted {
            name: format!("amd/{product}-{kind}.crl"),
            get: Box::new(move |client| {
                let (amd, line) = (&client.services.amd, line(product));
                let answer = client.get(&format!("{amd}/{kind}/v1/{line}/crl"))?;
                Ok(answer.body)
            }),
        });
    }
    Ok(wanted)
}

/// The lines that the processor may be of: reports of version 2 do not say.
fn products(report: &Report) -> Vec<SnpProduct> {
    SnpProduct::ALL
        .into_iter()
        .filter(|product| super::verify::check_product(report, *product).is_ok())
        .collect()
}

/// Turin names chips by 8 bytes, that zeros follow in a report.
fn chip(id: &[u8; 64], products: &[SnpProduct]) -> String {
    let bytes = if products == [SnpProduct::Turin] {
        8
    } else {
        64
    };
    hex::encode(&id[..bytes])
}

fn vcek(
    client: &Client<'_>,
    products: &[SnpProduct],
    chip: &str,
    tcb: &SnpTcb,
) -> Result<Vec<u8>, FetchError> {
    let mut versions = format!(
        "blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode
    );
    if let Some(fmc) = tcb.fmc {
        versions = format!("fmcSPL={fmc:02}&{versions}");
    }
    let mut refused = unusable(
        &client.services.amd,
        "no line of processors fits the report",
    );
    for product in products {
        let (amd, line) = (&client.services.amd, line(*product));
        match client.get(&format!("{amd}/vcek/v1/{line}/{chip}?{versions}")) {
            Ok(answer) => return Ok(answer.body),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// What AMD calls a line.
fn line(product: SnpProduct) -> &'static str {
    match product {
        SnpProduct::Milan => "Milan",
        SnpProduct::Genoa => "Genoa",
        SnpProduct::Turin => "Turin",
    }
}

fn file_name(tcb: &SnpTcb) -> String {
    let fmc = tcb.fmc.map_or(String::new(), |fmc| format!("{fmc}-"));
    format!(
        "{fmc}{}-{}-{}-{}",
        tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode
    )
}
