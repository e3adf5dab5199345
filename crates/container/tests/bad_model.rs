//! Models that cannot be sealed, each refused with its exact reason, and outputs that
//! cannot be written: nothing is left behind.

mod support;

use std::io::{self, Cursor, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use occlude_container::{
    Metadata, OutputError, SealError, SealOptions, seal, seal_file, unseal_file,
};
use occlude_onnx::messages::{ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use occlude_onnx::{Malformation, OnnxError, TensorProblem};
use prost::Message;
use support::{Folder, external, floats, key, model, noise, options, quiet, small_model};

/// Sealing fails, and the folder holds what it held before.
fn seal_error(folder: &Folder, model: &Path) -> SealError {
    let before = folder.names();
    let output = folder.path("model.occ");
    let error = seal_file(model, &output, &key(), &options(), &mut quiet).unwrap_err();
    assert_eq!(folder.names(), before);
    error
}

fn error_of(model: &ModelProto) -> SealError {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", model);
    seal_error(&folder, &path)
}

fn error_of_location(location: &str) -> SealError {
    let folder = Folder::new();
    folder.write("weights.bin", &noise(1, 4000));
    let weight = external("w", 1000, location, 0, Some(4000));
    let path = folder.write_model("model.onnx", &model(vec![], vec![weight]));
    seal_error(&folder, &path)
}

#[test]
fn files_that_are_not_onnx_are_refused() {
    let folder = Folder::new();
    let reason = |bytes: &[u8]| match seal_error(&folder, &folder.write("model.onnx", bytes)) {
        SealError::NotOnnx(OnnxError::Malformed { reason, .. }) => Some(reason),
        SealError::NotOnnx(OnnxError::NotAModel { .. }) => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        reason(b"PK\x03\x04\x14\x00\x00\x00"),
        Some(Malformation::FieldNumber)
    );
    assert_eq!(
        reason(b"hello, this is no model"),
        Some(Malformation::WireType)
    );
    assert_eq!(reason(b"{\"model\": true}"), Some(Malformation::WireType));
    assert_eq!(reason(b""), None);
    // A protobuf, but without a graph.
    let no_graph = ModelProto {
        ir_version: 8,
        ..Default::default()
    };
    assert_eq!(reason(&no_graph.encode_to_vec()), None);
}

#[test]
fn a_truncated_model_is_refused() {
    let folder = Folder::new();
    let bytes = small_model().encode_to_vec();
    let path = folder.write("model.onnx", &bytes[..bytes.len() - 2000]);
    assert!(matches!(
        seal_error(&folder, &path),
        SealError::NotOnnx(OnnxError::Malformed {
            reason: Malformation::Length,
            ..
        })
    ));
}

#[test]
fn an_absent_model_a_folder_and_a_device_are_refused() {
    let folder = Folder::new();
    let absent = folder.path("absent.onnx");
    assert!(matches!(
        seal_error(&folder, &absent),
        SealError::Read { path, source } if path == absent && source.kind() == ErrorKind::NotFound
    ));
    std::fs::create_dir(folder.path("folder.onnx")).unwrap();
    for path in [folder.path("folder.onnx"), "/dev/zero".into()] {
        assert!(
            matches!(seal_error(&folder, &path), SealError::NotAFile { path: named } if named == path)
        );
    }
}

#[test]
fn operator_sets_outside_the_runtimes_are_refused() {
    let with = |domain: &str, version| {
        let mut model = small_model();
        model.opset_import = vec![OperatorSetIdProto {
            domain: domain.to_owned(),
            version,
        }];
        model
    };
    for version in [i64::MIN, -1, 0, 6, 29, i64::MAX] {
        for domain in ["", "ai.onnx"] {
            assert!(matches!(
                error_of(&with(domain, version)),
                SealError::UnsupportedOpset { found: Some(found), lowest: 7, highest: 28 } if found == version
            ));
        }
    }
    let mut none = small_model();
    none.opset_import.clear();
    assert!(matches!(
        error_of(&none),
        SealError::UnsupportedOpset { found: None, .. }
    ));
    for (domain, version) in [("", 7), ("", 28), ("ai.onnx.ml", 3)] {
        let folder = Folder::new();
        let path = folder.write_model("model.onnx", &with(domain, version));
        folder.seal(&path, "model.occ");
    }
}

#[test]
fn missing_external_data_is_named() {
    for location in ["absent.bin", "no/such/folder.bin", "weights.bin/below"] {
        match error_of_location(location) {
            SealError::MissingExternalData { tensor, path } => {
                assert!(tensor == "w" && path.ends_with(location));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn external_data_that_ends_early_is_refused() {
    let folder = Folder::new();
    folder.write("weights.bin", &noise(1, 4000));
    for (offset, expected) in [(1, 1), (4000, 4000), (u64::MAX, u64::MAX - 4000)] {
        let weight = external("w", 1000, "weights.bin", offset, Some(4000));
        let path = folder.write_model("model.onnx", &model(vec![], vec![weight]));
        match seal_error(&folder, &path) {
            SealError::TruncatedExternalData { missing, .. } => assert_eq!(missing, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn paths_that_leave_the_models_folder_are_refused() {
    let escapes = [
        "/etc/hostname",
        "..",
        "../weights.bin",
        "a/../../weights.bin",
        "a/../weights.bin",
        "",
        ".",
        "/",
    ];
    for escape in escapes {
        match error_of_location(escape) {
            SealError::EscapingPath { tensor, location } => {
                assert!(tensor == "w" && location == escape);
            }
            other => panic!("{escape}: {other:?}"),
        }
    }
}

#[test]
fn symbolic_links_that_leave_the_models_folder_are_refused_and_others_followed() {
    let outside = Folder::new();
    let secret = outside.write("secret.bin", &noise(1, 4000));
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.write("sub/weights.bin", &noise(2, 4000));
    symlink(&secret, folder.path("link.bin")).unwrap();
    symlink(outside.path(""), folder.path("folder")).unwrap();
    symlink(folder.path("sub/weights.bin"), folder.path("inside.bin")).unwrap();
    symlink("/dev/zero", folder.path("sub/device")).unwrap();
    let model_of = |location: &str| {
        let weight = external("w", 1000, location, 0, Some(4000));
        folder.write_model("model.onnx", &model(vec![], vec![weight]))
    };
    for escape in ["link.bin", "folder/secret.bin", "sub/device"] {
        let error = seal_error(&folder, &model_of(escape));
        assert!(matches!(error, SealError::EscapingPath { location, .. } if location == escape));
    }
    let error = seal_error(&folder, &model_of("sub"));
    assert!(matches!(error, SealError::NotAFile { .. }));
    folder.seal(&model_of("inside.bin"), "model.occ");
}

#[test]
fn values_that_do_not_fill_their_shape_are_refused() {
    let with = |tensor: TensorProto| match error_of(&model(vec![], vec![tensor])) {
        SealError::Model(OnnxError::Tensor { name, problem }) => {
            assert_eq!(name, "w");
            problem
        }
        other => panic!("{other:?}"),
    };
    let weight = || floats("w", 1, 1000);
    let expected = TensorProblem::Length {
        expected: 4004,
        found: 4000,
    };
    assert_eq!(
        with(TensorProto {
            dims: vec![1001],
            ..weight()
        }),
        expected
    );
    assert_eq!(
        with(TensorProto {
            dims: vec![-1],
            ..weight()
        }),
        TensorProblem::NegativeExtent(-1)
    );
    for data_type in [0, 8, 99] {
        let tensor = TensorProto {
            data_type,
            ..weight()
        };
        assert_eq!(with(tensor), TensorProblem::DataType(data_type));
    }
    let external = external("w", 1001, "model.onnx", 0, Some(20));
    let expected = TensorProblem::Length {
        expected: 4004,
        found: 20,
    };
    assert_eq!(with(external), expected);
}

#[test]
fn two_initializers_of_one_name_are_refused() {
    let error = error_of(&model(
        vec![],
        vec![floats("w", 1, 600), floats("w", 2, 600)],
    ));
    assert!(matches!(
        error,
        SealError::Model(OnnxError::DuplicateInitializer { name }) if name == "w"
    ));
}

#[test]
fn metadata_that_speaks_of_an_output_that_is_not_there_is_refused() {
    let folder = Folder::new();
    let mut named = small_model();
    let outputs = &mut named.graph.as_mut().unwrap().output;
    outputs.clear();
    for name in ["one", "another"] {
        outputs.push(ValueInfoProto {
            name: name.to_owned(),
            ..ValueInfoProto::default()
        });
    }
    let path = folder.write_model("model.onnx", &named);
    let output = folder.path("model.occ");
    let seal = |outputs: &[&str]| {
        let metadata = Metadata {
            outputs: outputs.iter().map(ToString::to_string).collect(),
            ..Metadata::default()
        };
        let options = SealOptions {
            metadata,
            ..options()
        };
        seal_file(&path, &output, &key(), &options, &mut quiet)
    };
    let error = seal(&["another", "third"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model has no output \"third\": it has one, another"
    );
    assert!(!folder.path("model.occ").exists());
    seal(&["another", "one"]).unwrap();
}

#[test]
fn version_zero_is_refused() {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", &small_model());
    let options = SealOptions {
        version: 0,
        ..options()
    };
    let error = seal_file(
        &path,
        &folder.path("model.occ"),
        &key(),
        &options,
        &mut quiet,
    );
    assert!(matches!(error, Err(SealError::VersionZero)));
}

#[test]
fn a_model_of_too_many_chunks_is_refused_before_anything_is_written() {
    let folder = Folder::new();
    let path = folder.path("weights.bin");
    let length = 17_u64 << 30;
    std::fs::File::create(&path)
        .unwrap()
        .set_len(length)
        .unwrap();
    let weight = external("w", length / 4, "weights.bin", 0, None);
    let path = folder.write_model("model.onnx", &model(vec![], vec![weight]));
    assert!(matches!(
        seal_error(&folder, &path),
        SealError::TooManyChunks {
            chunks: 4_456_449..,
            limit: 4_194_304
        }
    ));
}

/// Takes some bytes, then is full.
struct FullDisk {
    written: Cursor<Vec<u8>>,
    room: usize,
}

impl Write for FullDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written.position() as usize + bytes.len() > self.room {
            return Err(ErrorKind::StorageFull.into());
        }
        self.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for FullDisk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.written.seek(to)
    }
}

#[test]
fn a_disk_that_fills_up_stops_sealing_and_what_is_there_is_no_container() {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", &small_model());
    let whole = 4096 + 4 * (4096 + 16) + 4 * 32;
    for room in [0, 4096, 5000, 10_000, whole - 1] {
        let mut sink = FullDisk {
            written: Cursor::default(),
            room,
        };
        let error = seal(&path, &mut sink, &key(), &options(), &mut quiet).unwrap_err();
        assert!(
            matches!(error, SealError::Write(source) if source.kind() == ErrorKind::StorageFull)
        );
        assert!(
            sink.written
                .get_ref()
                .iter()
                .take(4096)
                .all(|&byte| byte == 0)
        );
    }
    let mut sink = FullDisk {
        written: Cursor::default(),
        room: whole,
    };
    seal(&path, &mut sink, &key(), &options(), &mut quiet).unwrap();
}

#[test]
fn a_full_device_is_an_error() {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", &small_model());
    let error = seal_file(
        &path,
        Path::new("/dev/full"),
        &key(),
        &options(),
        &mut quiet,
    );
    assert!(
        matches!(error, Err(SealError::Write(source)) if source.kind() == ErrorKind::StorageFull)
    );
    assert_eq!(folder.names(), ["model.onnx"]);
}

#[test]
fn sealing_into_dev_null_works() {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", &small_model());
    seal_file(
        &path,
        Path::new("/dev/null"),
        &key(),
        &options(),
        &mut quiet,
    )
    .unwrap();
}

#[test]
fn an_output_that_exists_is_never_touched() {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", &small_model());
    let precious = folder.write("precious", b"precious");
    symlink("nowhere", folder.path("dangling")).unwrap();
    for name in ["precious", "dangling", "model.onnx"] {
        let output = folder.path(name);
        let error = seal_file(&path, &output, &key(), &options(), &mut quiet);
        assert!(matches!(
            error,
            Err(SealError::Output(OutputError::Exists { path })) if path == output
        ));
    }
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    let (sealed, _) = folder.seal(&path, "model.occ");
    let error = unseal_file(&sealed, &precious, &key(), &mut quiet);
    assert!(matches!(
        error,
        Err(occlude_container::UnsealError::Output(
            OutputError::Exists { .. }
        ))
    ));
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
}

#[test]
fn an_output_in_no_folder_is_an_error() {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", &small_model());
    let output = folder.path("absent/model.occ");
    assert!(matches!(
        seal_file(&path, &output, &key(), &options(), &mut quiet),
        Err(SealError::Output(OutputError::Io { source, .. })) if source.kind() == ErrorKind::NotFound
    ));
}

/// While sealing runs there is nothing to see; a killed process leaves nothing.
#[test]
fn a_half_written_file_has_no_name() {
    let folder = Folder::new();
    let path = folder.write_model("model.onnx", &small_model());
    let mut seen = Vec::new();
    seal_file(
        &path,
        &folder.path("model.occ"),
        &key(),
        &options(),
        &mut |_| {
            seen.push(folder.names());
        },
    )
    .unwrap();
    let unnamed = vec!["model.onnx".to_owned()];
    let can_be_unnamed = rustix::fs::openat(
        rustix::fs::CWD,
        folder.path(""),
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR,
    );
    if can_be_unnamed.is_ok() {
        assert!(!seen.is_empty() && seen.iter().all(|names| *names == unnamed));
    } else {
        assert!(
            seen.iter()
                .all(|names| !names.contains(&"model.occ".to_owned()))
        );
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_sealed_is_an_error_and_leaves_nothing() {
    let folder = Folder::new();
    let data = folder.path("weights.bin");
    std::fs::write(&data, noise(1, 4 << 20)).unwrap();
    let weight = external("w", 1 << 20, "weights.bin", 0, None);
    let path = folder.write_model("model.onnx", &model(vec![], vec![weight]));
    let before = folder.names();
    let error = seal_file(
        &path,
        &folder.path("model.occ"),
        &key(),
        &options(),
        &mut |_| {
            std::fs::File::options()
                .write(true)
                .open(&data)
                .unwrap()
                .set_len(0)
                .unwrap();
        },
    )
    .unwrap_err();
    assert!(matches!(error, SealError::Changed { path } if path.ends_with("weights.bin")));
    assert_eq!(folder.names(), before);
}
