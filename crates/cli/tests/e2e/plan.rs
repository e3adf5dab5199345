//! Budgets of protected memory: the plan that an owner sees, and what a server, whose log
//! the operator reads, says of the same.

use serde_json::Value;

use crate::support::deployment::{Owner, text};
use crate::support::model;
use crate::support::process::{Said, Service, binary, free_address, run};

fn inspect(owner: &Owner, more: &[&str]) -> Said {
    let container = owner.at("model.occ");
    let key = owner.at("owner.key");
    let mut arguments = vec!["inspect", text(&container), "--key", text(&key), "--plan"];
    arguments.extend(more);
    run(arguments)
}

fn plan(owner: &Owner, more: &[&str]) -> Value {
    let printed = inspect(owner, &[&["--json"], more].concat()).success();
    let mut document: Value = serde_json::from_str(&printed).expect("one JSON document");
    document["plan"].take()
}

/// The number behind `before` in a sentence.
fn number(text: &str, before: &str) -> u64 {
    let (_, rest) = text.split_once(before).expect(text);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect(text)
}

fn sum(plan: &Value, field: &str) -> u64 {
    let layers = plan["layers"].as_array().expect("a list");
    let each = layers
        .iter()
        .map(|layer| layer[field].as_u64().expect("bytes"));
    each.sum()
}

#[test]
fn an_owner_sees_the_plan_and_a_small_budget_is_refused_with_the_smallest_and_its_layer() {
    let owner = Owner::new(201, &binary());
    let resident = plan(&owner, &[]);
    assert_eq!(resident["streamed_bytes"], 0);
    assert_eq!(
        resident["layers"][0]["name"],
        "confidential_first_layer_weight"
    );
    assert_eq!(resident["layers"][0]["kind"], "matrix");

    let refused = inspect(&owner, &["--protected-memory", "1MiB", "--sessions", "2"]);
    let said = refused.err.clone();
    refused.fails_with(1, "1048576 bytes of protected memory are not enough");
    assert!(said.contains("; matrix "), "{said}");
    assert!(said.contains("_layer_weight`)"), "{said}");
    let smallest = number(&said, "the model needs ");
    assert!(number(&said, "of which ") > 1 << 20, "{said}");

    let least = format!("{smallest}B");
    let fitted = plan(&owner, &["--protected-memory", &least, "--sessions", "2"]);
    assert_eq!(fitted["sessions"], 2);
    assert_eq!(fitted["budget_bytes"], smallest);
    assert!(fitted["total_bytes"].as_u64() <= Some(smallest), "{fitted}");
    for field in ["resident_bytes", "streamed_bytes"] {
        assert_eq!(fitted[field], sum(&fitted, field), "{fitted}");
    }

    let ample = format!("{}B", smallest + (64 << 20));
    let table = inspect(&owner, &["--protected-memory", &ample]).success();
    for part in [
        "read by",
        "confidential_second_layer_weight",
        "a session",
        "in all",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
    inspect(&owner, &["--max-shape", "pixels=1x64"]).fails_with(
        2,
        "--max-shape names the input `pixels`, which the model does not have",
    );
    inspect(&owner, &["--max-shape", &format!("{}=1x63", model::INPUT)]).fails_with(
        1,
        "the largest shape of input `pixel_intensities` is given as [1, 63]",
    );
}

#[test]
fn a_server_tells_totals_and_which_layer_is_too_large_and_names_none() {
    let owner = Owner::new(202, &binary());
    let without_names = |log: &str| {
        for name in &owner.model.names {
            // Whoever asks the server learns of inputs and outputs.
            let public = [model::INPUT, model::OUTPUT].contains(&name.as_str());
            assert!(public || !log.contains(name), "{name} in {log}");
        }
    };
    let small = ["--protected-memory", "1MiB"];
    let refused = owner.serve_refused(&binary(), "model.occ", &small);
    without_names(&refused.err);
    let smallest = number(&refused.err, "the model needs ");
    refused.fails_with(1, " needs the most");
    owner
        .serve_refused(&binary(), "model.occ", &["--max-shape", "pixels=1x64"])
        .fails_with(1, "max-shape names the input `pixels`, which no model has");

    let address = free_address();
    let budget = format!("{}B", smallest + (1 << 20));
    let shape = format!("{}=1x64", model::INPUT);
    let more = ["--protected-memory", &budget, "--max-shape", &shape];
    let server = Service::start(
        &mut owner.serve_command(&binary(), "model.occ", address, &more),
        owner.at("server-planned.log"),
        address,
    );
    owner
        .infer(&server.url(), "policy.toml", &model::secret_input(203))
        .success();
    std::fs::write(owner.at("two.npy"), model::npy(&[0.5; 128])).expect("written");
    run([
        "infer",
        &server.url(),
        "--model",
        "classifier",
        "--policy",
        text(&owner.at("policy.toml")),
        "--input",
        &format!("{}={}", model::INPUT, text(&owner.at("two.npy"))),
    ])
    .fails_with(
        1,
        "has shape [2, 64]; memory is planned for [1, 64] at most",
    );
    let log = server.log();
    without_names(&log);
    for total in [
        "streamed_bytes=",
        "resident_bytes=",
        "streaming_costs_ms=",
        "working_bytes_a_session=",
    ] {
        assert!(log.contains(total), "{total} in {log}");
    }
}
