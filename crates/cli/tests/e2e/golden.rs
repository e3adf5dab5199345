//! What the command line says, word for word, in `tests/golden/*.txt`.
//!
//! After a change that is meant, `SNAPSHOTS=overwrite` writes the transcripts anew;
//! they are reviewed like code.

use std::fmt::Write as _;
use std::path::Path;

use occlude_keys::OwnerKey;
use snapbox::{assert_data_eq, file};

use crate::support::process::{binary, occlude, said};

/// Runs `lines` in `folder` and writes down what a person would see.
pub(crate) fn transcript(folder: &Path, lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let output = occlude(&binary())
            .args(line.split(' ').filter(|word| !word.is_empty()))
            .current_dir(folder)
            .env("COLUMNS", "100")
            .output()
            .expect("the binary runs");
        let said = said(&output);
        writeln!(
            text,
            "$ occlude {line}\n{}{}[exit code {}]\n",
            said.out, said.err, said.code
        )
        .expect("a string takes everything");
    }
    text
}

#[test]
fn the_help_teaches() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let said = transcript(
        folder.path(),
        &[
            "--help",
            "keygen --help",
            "seal --help",
            "unseal --help",
            "inspect --help",
            "verify --help",
            "broker --help",
            "broker add-model --help",
            "broker set-policy --help",
            "broker withdraw --help",
            "broker audit --help",
            "serve --help",
            "attest --help",
            "attest show --help",
            "attest verify --help",
            "attest collect --help",
            "attest pin --help",
            "attest measure --help",
            "attest measure snp --help",
            "attest measure tpm --help",
            "attest collateral --help",
            "attest collateral fetch --help",
            "attest collateral list --help",
            "tee --help",
            "tee list --help",
            "policy --help",
            "policy sign --help",
            "policy show --help",
            "infer --help",
            "proxy --help",
            "guard --help",
            "guard keygen --help",
            "guard tune --help",
            "guard token --help",
            "guard claim --help",
            "guard watch --help",
            "bench --help",
            "completions --help",
        ],
    );
    assert_data_eq!(said, file!["../golden/help.txt"]);
}

#[test]
fn wrong_usage_is_told_and_ends_in_exit_code_2() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lines = [
        "",
        "frobnicate",
        "keygen",
        "seal model.onnx",
        "seal model.onnx -o model.occ --key owner.key --version 0",
        "seal model.onnx -o model.occ --key owner.key --id ../name",
        "seal model.onnx -o model.occ --key owner.key --chunk-size 100",
        "verify model.occ",
        "verify model.occ --owner me",
        "serve",
        "serve --model model.occ --broker http://127.0.0.1:1 --tee silent-lake",
        "serve --max-shape image",
        "inspect model.occ --plan",
        "inspect model.occ --key owner.key --protected-memory 64MiB",
        "inspect model.occ --key owner.key --plan --protected-memory much",
        "infer http://127.0.0.1:1 --model digits --policy policy.toml --input x.npy",
        "infer http://127.0.0.1:1 --model digits --policy policy.toml --input x=x.npy --output out.png",
        "attest verify --policy policy.toml",
        "attest verify http://127.0.0.1:1 --evidence answer.json --policy policy.toml",
        "attest verify http://127.0.0.1:1 --nonce 00 --policy policy.toml",
        "attest verify --evidence report.bin --policy policy.toml --report-data 00",
        "attest verify --evidence report.bin --policy policy.toml --statement s.json",
        "attest verify --evidence report.bin --policy policy.toml --at yesterday",
        "proxy http://127.0.0.1:1",
        "bench",
        "bench model.onnx --budget half",
        "bench model.onnx --budget 101%",
        "bench model.onnx --spill disk",
        "bench model.onnx --spill direct:/var/tmp,read-ahead=1MiB",
        "serve --spill direct:",
        "bench model.onnx --threads 0",
        "bench model.onnx --batch 2 --inputs x.npz",
    ];
    let said = transcript(folder.path(), &lines);
    assert_eq!(said.matches("[exit code 2]").count(), lines.len(), "{said}");
    assert_data_eq!(said, file!["../golden/usage.txt"]);
}

#[test]
fn each_technology_says_what_is_missing_and_how_it_was_tested() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for machine in ["nothing", "guest"] {
        std::fs::create_dir_all(folder.path().join(machine).join("dev")).expect("made");
    }
    for device in ["sev-guest", "tpmrm0", "sgx_enclave"] {
        std::fs::write(folder.path().join("guest/dev").join(device), "").expect("written");
    }
    let said = transcript(
        folder.path(),
        &[
            "tee list --root nothing",
            "tee list --root guest",
            "tee list --root guest --json",
        ],
    );
    assert_data_eq!(said, file!["../golden/tee.txt"]);
}

/// The key and the sealed model are the container's published test vector, so every
/// word stays the same.
#[test]
fn a_files_whole_life_reads_the_same_every_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../container/tests/vectors");
    let vector: serde_json::Value =
        serde_json::from_slice(&std::fs::read(vectors.join("vector.json")).expect("read"))
            .expect("JSON");
    let mut secret = [0; 64];
    hex::decode_to_slice(
        vector["owner_secret"].as_str().expect("a secret"),
        &mut secret,
    )
    .expect("hexadecimal");
    OwnerKey::from_secret(&secret)
        .write_new(&at("owner.key"))
        .expect("written");
    OwnerKey::from_secret(&[7; 64])
        .write_new(&at("stranger.key"))
        .expect("written");
    let sealed = std::fs::read(vectors.join("sealed.occ")).expect("read");
    std::fs::write(at("model.occ"), &sealed).expect("written");
    std::fs::write(at("cut.occ"), &sealed[..sealed.len() - 7]).expect("written");
    let mut flipped = sealed;
    flipped[5000] ^= 1;
    std::fs::write(at("flipped.occ"), flipped).expect("written");
    std::fs::write(at("text.onnx"), "this is no protobuf of any kind").expect("written");
    std::fs::write(
        at("policy.toml"),
        format!(
            "format = 1\nreviewed = true\n[evidence]\ntee = [\"snp\"]\nmeasurements = [\"{}\"]\n[service]\nowners = [\"{}\"]\n",
            "ab".repeat(48),
            OwnerKey::from_secret(&secret).public(),
        ),
    )
    .expect("written");
    std::fs::write(at("surprising.toml"), "format = 1\nsurprise = true\n").expect("written");
    let said = transcript(
        folder.path(),
        &[
            "keygen --public owner.key",
            "keygen --public owner.key --json",
            "keygen -o owner.key",
            "inspect model.occ",
            "inspect model.occ --key owner.key",
            "inspect model.occ --json",
            "inspect model.occ --key stranger.key",
            "verify model.occ --key owner.key",
            "verify model.occ --key owner.key --json",
            "verify model.occ --key stranger.key",
            "verify cut.occ --key owner.key",
            "verify flipped.occ --key owner.key",
            "verify absent.occ --key owner.key",
            "verify text.onnx --key owner.key",
            "unseal model.occ -o model.onnx --key owner.key",
            "unseal model.occ -o model.onnx --key owner.key",
            "seal text.onnx -o text.occ --key owner.key",
            "seal model.onnx -o model.occ --key owner.key",
            "seal absent.onnx -o absent.occ --key owner.key",
            "policy show policy.toml",
            "policy show policy.toml --json",
            "policy show surprising.toml",
            "policy sign policy.toml -o policy.signed --key owner.key",
            "policy show policy.signed",
            "policy sign policy.signed -o again.signed --key owner.key",
        ],
    );
    assert_data_eq!(said, file!["../golden/files.txt"]);
}
