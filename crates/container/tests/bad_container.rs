//! Containers that the host altered, each refused with its exact reason.

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use occlude_container::{
    ChunkRepair, Container, ContainerError, HEADER_LENGTH, Header, HeaderError, OpenError,
    SealOptions, SignedContainer, UnsealError, model_key, seal_file, unseal_file,
};
use occlude_keys::{ModelKey, OwnerPublic};
use support::{Folder, floats, key, model, node, noise, options, other_key, quiet, small_model};

const CHUNK: usize = 4096 + 16;

/// A sealed model of a few chunks, and its bytes.
fn sealed(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let model = folder.write_model("model.onnx", &small_model());
    let (path, sealed) = folder.seal(&model, "model.occ");
    assert_eq!(sealed.header.chunk_count(), 4);
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

fn read(bytes: &[u8]) -> Result<Container, ContainerError> {
    let folder = Folder::new();
    Container::read(&folder.write("altered.occ", bytes))
}

fn verify(bytes: &[u8]) -> Result<SignedContainer, ContainerError> {
    read(bytes)?.verify_owner(&key().public())
}

fn header_error(bytes: &[u8]) -> HeaderError {
    match read(bytes) {
        Err(ContainerError::Header(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// The error of opening and reading everything, with the right keys.
fn open_all(path: &Path) -> Result<(), OpenError> {
    let signed = Container::read(path)
        .unwrap()
        .verify_owner(&key().public())
        .unwrap();
    let model_key = model_key(&key(), signed.header());
    signed.open(&model_key)?.verify_all(&mut quiet)
}

#[test]
fn every_bit_of_the_header_matters() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for bit in 0..HEADER_LENGTH * 8 {
        let at = bit / 8;
        file.write_all_at(&[bytes[at] ^ 1 << (bit % 8)], at as u64)
            .unwrap();
        let verified = Container::read(&path).and_then(|read| read.verify_owner(&key().public()));
        let error = verified.map(|_| ()).unwrap_err();
        file.write_all_at(&[bytes[at]], at as u64).unwrap();
        let as_expected = match at {
            0..8 => matches!(error, ContainerError::Header(HeaderError::NotAContainer)),
            8..10 => matches!(
                error,
                ContainerError::Header(HeaderError::ForeignVersion { .. })
            ),
            10..12 => matches!(
                error,
                ContainerError::Header(HeaderError::ForeignSuite { .. })
            ),
            // One flipped bit of a power of two gives no power of two.
            12..16 => matches!(error, ContainerError::Header(HeaderError::ChunkSize { .. })),
            16..24 => matches!(
                error,
                ContainerError::Header(HeaderError::ChunkCount { .. })
                    | ContainerError::Truncated { .. }
                    | ContainerError::TrailingBytes { .. }
            ),
            24..32 => matches!(
                error,
                ContainerError::BadSignature | ContainerError::Header(HeaderError::ModelVersion)
            ),
            32 => matches!(error, ContainerError::Header(HeaderError::ModelId)),
            33..97 => matches!(
                error,
                ContainerError::BadSignature | ContainerError::Header(HeaderError::ModelId)
            ),
            97..104 | 296.. => {
                matches!(error, ContainerError::Header(HeaderError::NotZero { offset }) if offset == at)
            }
            104..136 => matches!(
                error,
                ContainerError::WrongOwner { .. } | ContainerError::Header(HeaderError::Owner)
            ),
            _ => matches!(error, ContainerError::BadSignature),
        };
        assert!(as_expected, "bit {} of byte {at}: {error:?}", bit % 8);
    }
    assert!(verify(&std::fs::read(&path).unwrap()).is_ok());
}

#[test]
fn a_foreign_format_version_and_a_foreign_suite_are_named() {
    let folder = Folder::new();
    let (_, mut bytes) = sealed(&folder);
    bytes[8..10].copy_from_slice(&2_u16.to_le_bytes());
    let foreign = HeaderError::ForeignVersion {
        found: 2,
        supported: 1,
    };
    assert_eq!(header_error(&bytes), foreign);
    bytes[8..10].copy_from_slice(&1_u16.to_le_bytes());
    bytes[10..12].copy_from_slice(&7_u16.to_le_bytes());
    let foreign = HeaderError::ForeignSuite {
        found: 7,
        supported: 1,
    };
    assert_eq!(header_error(&bytes), foreign);
}

#[test]
fn impossible_headers_are_refused_each_with_its_reason() {
    let folder = Folder::new();
    let (_, bytes) = sealed(&folder);
    let with = |at: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        Header::parse(&bytes).unwrap_err()
    };
    for found in [0, 1, 2048, 4097, 32 << 20, u32::MAX] {
        assert_eq!(
            with(12, &found.to_le_bytes()),
            HeaderError::ChunkSize { found }
        );
    }
    for found in [0, (1 << 22) + 1, u64::MAX] {
        let limit = 1 << 22;
        assert_eq!(
            with(16, &found.to_le_bytes()),
            HeaderError::ChunkCount { found, limit }
        );
    }
    assert_eq!(with(24, &[0; 8]), HeaderError::ModelVersion);
    for id in [
        b"\x00".as_slice(),
        b"\x41",
        b"\xff",
        b"\x03../",
        b"\x04te\0t",
        b"\x04\xff\xff\xff\xff",
        b"\x03testx",
    ] {
        assert_eq!(with(32, id), HeaderError::ModelId);
    }
    assert_eq!(with(97, &[1]), HeaderError::NotZero { offset: 97 });
    assert_eq!(with(4095, &[1]), HeaderError::NotZero { offset: 4095 });
    // No point of the curve, and one of small order.
    assert_eq!(with(104, &[2; 32]), HeaderError::Owner);
    assert_eq!(with(104, &[0; 32]), HeaderError::Owner);
}

#[test]
fn what_is_not_a_container_is_refused() {
    for bytes in [
        b"".as_slice(),
        b"PK\x03\x04",
        &noise(1, 10_000),
        &small_model_bytes(),
    ] {
        assert_eq!(header_error(bytes), HeaderError::NotAContainer);
    }
    let folder = Folder::new();
    assert!(matches!(
        Container::read(&folder.path("absent.occ")),
        Err(ContainerError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound
    ));
    // A pipe: opening it would wait for somebody who writes.
    let pipe = folder.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for path in [folder.path(""), pipe] {
        let error = Container::read(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a folder, a pipe or a character device, not a regular file or a disk"
        );
    }
}

fn small_model_bytes() -> Vec<u8> {
    prost::Message::encode_to_vec(&small_model())
}

#[test]
fn a_truncated_container_is_refused_and_says_what_is_missing() {
    let folder = Folder::new();
    let (_, bytes) = sealed(&folder);
    for length in [1, 8, 100, HEADER_LENGTH - 1] {
        let missing = (HEADER_LENGTH - length) as u64;
        assert_eq!(
            header_error(&bytes[..length]),
            HeaderError::Truncated { missing }
        );
    }
    for length in [
        HEADER_LENGTH,
        HEADER_LENGTH + CHUNK,
        bytes.len() - 32,
        bytes.len() - 1,
    ] {
        let expected = (bytes.len() - length) as u64;
        let error = read(&bytes[..length]).unwrap_err();
        assert!(matches!(error, ContainerError::Truncated { missing } if missing == expected));
    }
}

#[test]
fn a_container_with_something_after_it_is_refused() {
    let folder = Folder::new();
    let (_, mut bytes) = sealed(&folder);
    bytes.extend(b"more");
    let error = read(&bytes).unwrap_err();
    assert!(matches!(error, ContainerError::TrailingBytes { extra: 4 }));
}

#[test]
fn another_owners_model_is_refused_and_both_owners_named() {
    let folder = Folder::new();
    let (_, bytes) = sealed(&folder);
    let wanted: OwnerPublic = other_key().public();
    match read(&bytes).unwrap().verify_owner(&wanted) {
        Err(ContainerError::WrongOwner { expected, found }) => {
            assert_eq!((*expected, *found), (wanted, key().public()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_header_that_claims_the_owner_without_its_signature_is_refused() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let output = folder.path("forged.occ");
    seal_file(&model, &output, &other_key(), &options(), &mut quiet).unwrap();
    let mut bytes = std::fs::read(&output).unwrap();
    bytes[104..136].copy_from_slice(key().public().as_bytes());
    assert!(matches!(verify(&bytes), Err(ContainerError::BadSignature)));
}

#[test]
fn every_byte_of_the_digest_list_matters() {
    let folder = Folder::new();
    let (_, bytes) = sealed(&folder);
    for at in HEADER_LENGTH + 4 * CHUNK..bytes.len() {
        let error = verify(&flipped(&bytes, at)).unwrap_err();
        assert!(
            matches!(error, ContainerError::AlteredDigests),
            "{at}: {error}"
        );
    }
}

#[test]
fn a_flipped_bit_in_any_chunk_is_found_with_and_without_the_key() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    for expected in 0..4_u64 {
        for within in [0, 1, 777, 4095, 4096, CHUNK - 1] {
            let at = HEADER_LENGTH + expected as usize * CHUNK + within;
            let altered = flipped(&bytes, at);
            let error = verify(&altered)
                .unwrap()
                .verify_ciphertext(&mut quiet)
                .unwrap_err();
            assert!(matches!(error, ContainerError::Inauthentic { chunk } if chunk == expected));
            std::fs::write(&path, &altered).unwrap();
            let error = open_all(&path).unwrap_err();
            assert!(matches!(error, OpenError::Inauthentic { chunk } if chunk == expected));
        }
    }
}

/// What came from a copy instead of the file, told chunk by chunk.
fn open_all_with(path: &Path, copy: &Path) -> (Result<(), OpenError>, Vec<ChunkRepair>) {
    let told: Arc<Mutex<Vec<ChunkRepair>>> = Arc::default();
    let noted = Arc::clone(&told);
    let signed = Container::read(path)
        .unwrap()
        .verify_owner(&key().public())
        .unwrap()
        .with_copy(copy, move |repair| noted.lock().unwrap().push(repair))
        .unwrap();
    let model_key = model_key(&key(), signed.header());
    // The first chunk is read once when it is opened, and then once more.
    let opened = signed
        .open(&model_key)
        .and_then(|open| open.verify_all(&mut quiet));
    let told = std::mem::take(&mut *told.lock().unwrap());
    (opened, told)
}

#[test]
fn an_altered_chunk_comes_from_a_copy_and_is_written_back() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    let copy = folder.write("copy.occ", &bytes);
    let at = |chunk: usize| HEADER_LENGTH + chunk * CHUNK + 777;
    assert!(matches!(open_all_with(&path, &copy), (Ok(()), told) if told.is_empty()));
    for chunk in 0..4 {
        std::fs::write(&path, flipped(&bytes, at(chunk))).unwrap();
        let (opened, told) = open_all_with(&path, &copy);
        opened.unwrap();
        assert_eq!(told, [ChunkRepair::Repaired], "{chunk}");
        assert!(std::fs::read(&path).unwrap() == bytes, "{chunk}");
    }
    // A copy is believed as little as the file.
    let altered = flipped(&bytes, at(2));
    std::fs::write(&path, &altered).unwrap();
    let altered = folder.write("altered-copy.occ", &altered);
    let (opened, told) = open_all_with(&path, &altered);
    assert!(matches!(opened, Err(OpenError::Inauthentic { chunk: 2 })));
    assert!(told.is_empty());
    let other = folder.write("other.occ", &bytes[..HEADER_LENGTH]);
    let (opened, _) = open_all_with(&path, &other);
    assert!(matches!(opened, Err(OpenError::Inauthentic { chunk: 2 })));
    let signed = verify(&bytes).unwrap();
    let absent = signed.with_copy(Path::new("/no-such-copy.occ"), |_| ());
    assert!(matches!(absent, Err(ContainerError::Io { .. })));
}

#[test]
fn reordered_and_repeated_chunks_are_found() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    let chunk = |n: usize| HEADER_LENGTH + n * CHUNK..HEADER_LENGTH + (n + 1) * CHUNK;
    for (to, from, first_altered) in [(1, 2, 1), (3, 0, 3), (0, 3, 0)] {
        let mut altered = bytes.clone();
        altered[chunk(to)].copy_from_slice(&bytes[chunk(from)]);
        std::fs::write(&path, &altered).unwrap();
        let error = open_all(&path).unwrap_err();
        assert!(matches!(error, OpenError::Inauthentic { chunk } if chunk == first_altered));
    }
}

/// Even whoever holds the model key cannot exchange chunks: the digests are signed.
#[test]
fn chunks_reordered_together_with_their_digests_are_found() {
    let folder = Folder::new();
    let (_, bytes) = sealed(&folder);
    let chunk = |n: usize| HEADER_LENGTH + n * CHUNK..HEADER_LENGTH + (n + 1) * CHUNK;
    let digest =
        |n: usize| HEADER_LENGTH + 4 * CHUNK + n * 32..HEADER_LENGTH + 4 * CHUNK + (n + 1) * 32;
    let mut altered = bytes.clone();
    altered[chunk(1)].copy_from_slice(&bytes[chunk(2)]);
    altered[chunk(2)].copy_from_slice(&bytes[chunk(1)]);
    altered[digest(1)].copy_from_slice(&bytes[digest(2)]);
    altered[digest(2)].copy_from_slice(&bytes[digest(1)]);
    assert!(matches!(
        verify(&altered),
        Err(ContainerError::AlteredDigests)
    ));
}

#[test]
fn chunks_spliced_in_from_another_version_are_found() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    let newer = folder.path("newer.occ");
    let options = SealOptions {
        version: 2,
        ..options()
    };
    seal_file(
        &folder.path("model.onnx"),
        &newer,
        &key(),
        &options,
        &mut quiet,
    )
    .unwrap();
    let other = std::fs::read(&newer).unwrap();
    let first = HEADER_LENGTH..HEADER_LENGTH + CHUNK;
    let mut altered = bytes.clone();
    altered[first.clone()].copy_from_slice(&other[first]);
    std::fs::write(&path, &altered).unwrap();
    assert!(matches!(
        open_all(&path),
        Err(OpenError::Inauthentic { chunk: 0 })
    ));
    // All chunks and digests of the other version under this version's header.
    let spliced = [&bytes[..HEADER_LENGTH], &other[HEADER_LENGTH..]].concat();
    assert!(matches!(
        verify(&spliced),
        Err(ContainerError::AlteredDigests)
    ));
    // The other version whole is a genuine container, of another digest and version.
    let genuine = verify(&other).unwrap();
    assert_eq!(genuine.header().version(), 2);
    let older = verify(&bytes).unwrap();
    assert_ne!(genuine.header().digest(), older.header().digest());
}

#[test]
fn a_wrong_key_is_refused_before_anything_is_opened() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    let wrong = ModelKey::new(zeroize::Zeroizing::new([7; 32]));
    let error = verify(&bytes).unwrap().open(&wrong).unwrap_err();
    assert!(matches!(error, OpenError::WrongKey));
    // The same model sealed again has another key.
    let (_, again) = folder.seal(&folder.path("model.onnx"), "again.occ");
    let error = verify(&bytes)
        .unwrap()
        .open(&model_key(&key(), &again.header))
        .unwrap_err();
    assert!(matches!(error, OpenError::WrongKey));
    let error =
        unseal_file(&path, &folder.path("back.onnx"), &other_key(), &mut quiet).unwrap_err();
    assert!(matches!(
        error,
        UnsealError::Container(ContainerError::WrongOwner { .. })
    ));
}

#[test]
fn a_tensor_that_fails_leaves_zeros_and_the_others_open() {
    let folder = Folder::new();
    let weights = vec![floats("good", 1, 4096), floats("bad", 2, 4096)];
    let nodes = vec![node("Add", &["good", "bad"], "y")];
    let model = folder.write_model("model.onnx", &model(nodes, weights));
    let (path, sealed) = folder.seal(&model, "model.occ");
    let last = HEADER_LENGTH + (sealed.header.chunk_count() as usize - 1) * CHUNK;
    let altered = flipped(&std::fs::read(&path).unwrap(), last);
    let signed = verify(&altered).unwrap();
    let model_key = model_key(&key(), signed.header());
    let opened = signed.open(&model_key).unwrap();
    let mut bytes = vec![0xcc; 16384];
    opened.read_tensor(0, &mut bytes).unwrap();
    assert!(bytes == noise(1, 16384));
    let error = opened.read_tensor(1, &mut bytes).unwrap_err();
    assert!(matches!(error, OpenError::Inauthentic { .. }));
    assert!(bytes.iter().all(|&byte| byte == 0));
    for (tensor, length) in [(2, 16384), (0, 16383), (usize::MAX, 0)] {
        let error = opened
            .read_tensor(tensor, &mut bytes[..length])
            .unwrap_err();
        assert!(matches!(error, OpenError::NoSuchTensor { .. }));
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_open_gives_an_error() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    let signed = Container::read(&path)
        .unwrap()
        .verify_owner(&key().public())
        .unwrap();
    let model_key = model_key(&key(), signed.header());
    let opened = signed.open(&model_key).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(bytes.len() as u64 / 2).unwrap();
    let error = opened.verify_all(&mut quiet).unwrap_err();
    assert!(
        matches!(error, OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof)
    );
}

#[test]
fn unsealing_what_is_not_authentic_leaves_nothing() {
    let folder = Folder::new();
    let (path, bytes) = sealed(&folder);
    let at = HEADER_LENGTH + 3 * CHUNK + 5;
    std::fs::write(&path, flipped(&bytes, at)).unwrap();
    let error = unseal_file(&path, &folder.path("back.onnx"), &key(), &mut quiet).unwrap_err();
    assert!(matches!(
        error,
        UnsealError::Open(OpenError::Inauthentic { chunk: 3 })
    ));
    assert_eq!(folder.names(), ["model.occ", "model.onnx"]);
}
