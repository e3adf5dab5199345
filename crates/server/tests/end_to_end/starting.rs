//! Why a server does not start, or stops at once, each with its own error.

use std::net::TcpListener;

use occlude_container::{ContainerError, HeaderError, OpenError};
use occlude_engine::LoadError;
use occlude_keys::{ModelKey, OwnerKey};
use occlude_server::{ServeError, Server, StartError, StartErrorKind};
use zeroize::Zeroizing;

use crate::world::{World, id, measurement, serve};

#[tokio::test]
async fn a_port_in_use_is_told_before_anything_else_is_tried() {
    let world = World::without_policy().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = world.options(&[std::path::Path::new("/nowhere.occ")]);
    options.listen = taken.local_addr().unwrap();
    let error = serve(options).await.err().unwrap();
    assert!(
        matches!(&error, StartError::Listen { address, source }
            if *address == taken.local_addr().unwrap()
                && source.kind() == std::io::ErrorKind::AddrInUse),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_sealed_model_is_refused() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plain.onnx");
    std::fs::write(&path, vec![8; 10_000]).unwrap();
    let error = serve(world.options(&[&path])).await.err().unwrap();
    assert!(
        matches!(
            &error,
            StartError::Container {
                source: ContainerError::Header(HeaderError::NotAContainer),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_container_whose_owner_did_not_sign_it_is_refused() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut bytes = std::fs::read(&model).unwrap();
    // The operator puts its own key where the owner's stands (bytes 104 to 135).
    bytes[104..136].copy_from_slice(OwnerKey::generate().public().as_bytes());
    std::fs::write(&model, bytes).unwrap();
    let error = serve(world.options(&[&model])).await.err().unwrap();
    assert!(
        matches!(
            &error,
            StartError::Container {
                source: ContainerError::BadSignature,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_of_another_measurement_gets_no_key() {
    let world = World::without_policy().await;
    world.release_to(&"a5".repeat(48)).await;
    let model = world.publish("digits", 1, 1.0).await;
    let error = serve(world.options(&[&model])).await.err().unwrap();
    let StartError::KeyRefused {
        id: refused,
        version: 1,
        reason,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*refused, id("digits"));
    assert_eq!(
        *reason,
        format!(
            "the broker refuses the key: the measurement {} is not in the policy",
            measurement()
        )
    );
    assert_eq!(error.kind(), StartErrorKind::Refused);
}

#[tokio::test]
async fn a_broker_that_is_down_is_told_apart_from_one_that_refuses() {
    let mut world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    world.stop_broker().await;
    let error = serve(world.options(&[&model])).await.err().unwrap();
    assert!(
        matches!(&error, StartError::KeyUnavailable { version: 1, .. }),
        "{error}"
    );
    assert_eq!(error.kind(), StartErrorKind::Unavailable);
}

#[tokio::test]
async fn a_withdrawn_version_gets_no_key() {
    let world = World::new().await;
    let old = world.publish("digits", 1, 1.0).await;
    let new = world.publish("digits", 2, 2.0).await;
    world
        .admin
        .withdraw(&world.owner, &id("digits"), 2)
        .await
        .unwrap();
    let error = serve(world.options(&[&old])).await.err().unwrap();
    assert_eq!(error.kind(), StartErrorKind::Refused);
    assert_eq!(
        error.to_string(),
        format!(
            "the broker http://{}/ refuses the key of model digits version 1: the broker refuses \
             the key: version 1 of digits is withdrawn: the lowest that still gets its key is 2",
            world.broker_address
        )
    );
    world.serve(&[&new]).await;
}

#[tokio::test]
async fn a_key_that_is_not_the_models_does_not_open_it() {
    let world = World::new().await;
    let model = world.seal("digits", 1, 1.0);
    let container = occlude_container::Container::read(&model).unwrap();
    let record = occlude_broker::ModelRecord {
        id: id("digits"),
        version: 1,
        header_digest: container.header().digest(),
    };
    let wrong = ModelKey::new(Zeroizing::new([7; 32]));
    world
        .admin
        .add_model(&world.owner, &record, &wrong)
        .await
        .unwrap();
    let error = serve(world.options(&[&model])).await.err().unwrap();
    assert!(
        matches!(
            &error,
            StartError::Open {
                source: OpenError::WrongKey,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn models_of_two_owners_are_refused_before_any_key_is_asked_for() {
    let mut world = World::new().await;
    let other = World::new().await;
    let ours = world.publish("digits", 1, 1.0).await;
    let more = world.publish("digits", 2, 1.0).await;
    let theirs = other.publish("letters", 1, 2.0).await;
    // Whoever asked for a key would report that nobody answers.
    world.stop_broker().await;
    let error = serve(world.options(&[&ours, &more, &theirs]))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&error, StartError::SeveralOwners { first, first_owner, second, second_owner }
            if *first == ours && **first_owner == world.owner.public()
                && *second == theirs && **second_owner == other.owner.public()),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        format!(
            "a server serves the models of one owner: {} is of {}, {} of {}",
            ours.display(),
            world.owner.public(),
            theirs.display(),
            other.owner.public()
        )
    );
    assert_eq!(error.kind(), StartErrorKind::Refused);
}

#[tokio::test]
async fn two_files_of_one_version_are_refused_before_any_key_is_asked_for() {
    let mut world = World::new().await;
    let first = world.publish("digits", 1, 1.0).await;
    let second = first.with_file_name("copy.occ");
    std::fs::copy(&first, &second).unwrap();
    world.stop_broker().await;
    let error = serve(world.options(&[&first, &second]))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&error, StartError::Duplicate { id: twice, version: 1 } if *twice == id("digits")),
        "{error}"
    );
}

#[tokio::test]
async fn a_weight_that_was_altered_stops_the_server_and_names_the_chunk() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut bytes = std::fs::read(&model).unwrap();
    // The last chunk holds the weight, the first one the graph.
    let chunk = (bytes.len() - 4096) as u64 / (4096 + 16) - 1;
    assert!(chunk > 0);
    let last = bytes.len() - 4096;
    bytes[last] ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let server = Server::bind(world.options(&[&model])).await;
    // Weights come while the server starts: it notices before or after.
    let said = match server {
        Ok(server) => match server.run(std::future::pending()).await.unwrap_err() {
            ServeError::Model { path, source } => (path, source),
            other => panic!("{other}"),
        },
        Err(StartError::Model { path, source }) => (path, source),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(said.0, model);
    assert!(
        matches!(said.1, LoadError::Open(OpenError::Inauthentic { chunk: found }) if found == chunk),
        "{}",
        said.1
    );
}

#[tokio::test]
async fn a_model_that_was_sealed_with_more_than_is_known_is_refused() {
    let world = World::new().await;
    for (id, entry, value, expected) in [
        (
            "later",
            "watermark",
            "{}",
            "it was sealed with \"watermark\", which this version does not know",
        ),
        (
            "malformed",
            "guard",
            "{}",
            "its guard: missing field `format`",
        ),
        (
            "format",
            "guard",
            "{\"format\":2}",
            "its guard: format 2, expected 1",
        ),
        (
            "another",
            "guard",
            "{\"format\":1,\"output\":\"p\",\"shaping\":{\"top\":1}}",
            "the guard names the output \"p\", which the model does not have",
        ),
    ] {
        let model = world.publish_with(id, entry, value).await;
        let error = serve(world.options(&[&model])).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.kind(), StartErrorKind::Failed);
    }
}
