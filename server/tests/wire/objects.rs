//! Objects over the wire: acknowledged means there, whatever happens next; limits hold; damage is never served.

use std::time::Duration;

use crate::rig::{Client, GC, bytes_of, object, serve, sid};
use bytes::Bytes;
use sealdrive_proto::limits::{MAX_FETCH, MAX_FIND};
use sealdrive_proto::v1;
use sealdrive_server::store::StoreOptions;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_objects_survive_the_plug_being_pulled() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut client = Client::new(&server, 1).await;
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let objects: Vec<Bytes> = (0..40)
        .map(|n| object(client.domain(), n, 5000 * n as usize))
        .collect();
    for some in objects.chunks(10) {
        let answer = client.upload(epoch, some.to_vec()).await.unwrap();
        assert_eq!((answer.durable_sequence, answer.conflicts.len()), (10, 0));
        // At once, before any index has it.
        assert_eq!(
            client
                .missing(&(0..41).map(sid).collect::<Vec<_>>())
                .await
                .unwrap()
                .last(),
            Some(&40)
        );
    }
    drop(server);

    let server = serve(dir.path(), StoreOptions::default()).await;
    let client = client.again(&server).await;
    let sids: Vec<_> = (0..41).map(sid).collect();
    assert_eq!(client.missing(&sids).await.unwrap(), [40]);
    let fetched = client.fetch(&sids).await.unwrap();
    assert_eq!(fetched[..40], objects[..]);
    assert!(fetched[40].is_empty(), "unknown");
    let again = client
        .upload(
            epoch,
            vec![objects[3].clone(), object(client.domain(), 4, 1)],
        )
        .await
        .unwrap();
    let hashes: Vec<_> = again
        .conflicts
        .iter()
        .map(|c| (c.sequence, c.stored_hash.clone()))
        .collect();
    let stored = |n: usize| bytes_of(blake3::hash(&objects[n]).as_bytes());
    assert_eq!(
        hashes,
        [(1, stored(3)), (2, stored(4))],
        "an id that is there says what is there"
    );
    assert_eq!(
        client.fetch(&[sid(4)]).await.unwrap()[0],
        objects[4],
        "the first stands"
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_missing_and_takes_a_new_copy() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut client = Client::new(&server, 1).await;
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let objects: Vec<Bytes> = (0..3).map(|n| object(client.domain(), n, 9000)).collect();
    client.upload(epoch, objects.clone()).await.unwrap();
    let pack = dir.path().join("packs/0000000000000001.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    let at = bytes
        .windows(64)
        .position(|window| window == &objects[1][2000..2064])
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();

    let fetched = client.fetch(&[sid(0), sid(1), sid(2)]).await.unwrap();
    assert_eq!(
        (&fetched[0], fetched[1].len(), &fetched[2]),
        (&objects[0], 0, &objects[2])
    );
    assert_eq!(
        client.missing(&[sid(0), sid(1), sid(2)]).await.unwrap(),
        [1]
    );
    let again = client
        .upload(epoch, vec![objects[1].clone()])
        .await
        .unwrap();
    assert_eq!(
        (again.durable_sequence, again.conflicts.len()),
        (1, 0),
        "stored anew"
    );
    assert_eq!(client.fetch(&[sid(1)]).await.unwrap()[0], objects[1]);
    server.shutdown().await.unwrap();
    // The packs alone tell the same.
    let counts = sealdrive_server::rebuild_index(dir.path()).unwrap();
    assert_eq!((counts.accounts, counts.drives), (1, 1));
    let server = serve(dir.path(), StoreOptions::default()).await;
    let client = client.again(&server).await;
    assert_eq!(
        client.fetch(&[sid(0), sid(1), sid(2)]).await.unwrap(),
        objects
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_object_of_this_domain_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let (mut client, other) = (
        Client::new(&server, 1).await,
        Client::new(&server, 50).await,
    );
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let good = object(client.domain(), 1, 100);
    let code = async |objects: Vec<Bytes>| client.upload(epoch, objects).await.unwrap_err().code();
    assert_eq!(code(vec![good.slice(1..)]).await, Code::InvalidArgument);
    assert_eq!(
        code(vec![good.slice(..good.len() - 1)]).await,
        Code::InvalidArgument
    );
    assert_eq!(code(vec![Bytes::new()]).await, Code::InvalidArgument);
    assert_eq!(
        code(vec![object(other.domain(), 1, 100)]).await,
        Code::NotFound
    );
    let too_large = object(client.domain(), 1, (1 << 20) + (1 << 19));
    assert_eq!(code(vec![too_large]).await, Code::InvalidArgument);
    let huge = vec![object(client.domain(), 1, 1 << 20); 9];
    assert_eq!(
        code(huge).await,
        Code::OutOfRange,
        "a message of more than 8 MiB"
    );
    assert_eq!(
        client.missing(&[sid(1)]).await.unwrap(),
        [0],
        "nothing of it was stored"
    );

    let open = |epoch, generation| v1::UploadRequest {
        open: Some(v1::UploadOpen {
            drive: bytes_of(&client.drive().0),
            lease_epoch: epoch,
            gc_generation: generation,
        }),
        ..Default::default()
    };
    let send = |sequence| v1::UploadRequest {
        open: None,
        sequence,
        objects: vec![good.clone()],
    };
    let refused =
        async |messages: Vec<v1::UploadRequest>| match client.upload_messages(messages).await {
            Err(status) => status,
            Ok(mut answers) => loop {
                match answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("not refused"),
                    Err(status) => break status,
                }
            },
        };
    assert_eq!(
        refused(vec![send(1)]).await.code(),
        Code::InvalidArgument,
        "not opened"
    );
    assert_eq!(
        refused(vec![open(epoch, GC), send(2)]).await.code(),
        Code::InvalidArgument,
        "a gap"
    );
    assert_eq!(
        refused(vec![open(epoch, GC), send(1), send(1)])
            .await
            .code(),
        Code::InvalidArgument,
        "a repetition"
    );
    assert!(
        refused(vec![open(epoch + 1, GC)])
            .await
            .message()
            .contains("lease")
    );
    assert!(
        refused(vec![open(epoch, GC + 1)])
            .await
            .message()
            .contains("generation")
    );

    let many = vec![sid(1); MAX_FIND.max(MAX_FETCH) + 1];
    assert_eq!(
        client
            .missing(&many[..MAX_FIND + 1])
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    assert_eq!(
        client
            .fetch(&many[..MAX_FETCH + 1])
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_and_full_disk_are_told_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let quota = Some(100_000);
    let server = serve(
        dir.path(),
        StoreOptions {
            quota,
            ..StoreOptions::default()
        },
    )
    .await;
    let mut client = Client::new(&server, 1).await;
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let objects: Vec<Bytes> = (0..10).map(|n| object(client.domain(), n, 9000)).collect();
    client.upload(epoch, objects.clone()).await.unwrap();
    // A stream of its own, at once: what the index does not have yet counts.
    let over = client
        .upload(
            epoch,
            vec![
                object(client.domain(), 20, 9000),
                object(client.domain(), 21, 9000),
            ],
        )
        .await
        .unwrap_err();
    assert_eq!(over.code(), Code::ResourceExhausted);
    assert!(over.message().contains("quota"), "{over}");
    // What it has it takes again: the answer may have been lost.
    client.upload(epoch, objects.clone()).await.unwrap();
    assert_eq!(
        client
            .fetch(&(0..10).map(sid).collect::<Vec<_>>())
            .await
            .unwrap(),
        objects
    );
    server.shutdown().await.unwrap();

    let store = StoreOptions {
        reserve_bytes: u64::MAX,
        ..StoreOptions::default()
    };
    let server = serve(dir.path(), store).await;
    let client = client.again(&server).await;
    let full = client
        .upload(epoch, vec![object(client.domain(), 30, 9000)])
        .await
        .unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(
        client.fetch(&[sid(1)]).await.unwrap()[0],
        objects[1],
        "reading goes on"
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_is_quick_with_streams_open_and_health_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut client = Client::new(&server, 1).await;
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(client.line.channel.clone());
    let asked = tonic_health::pb::HealthCheckRequest {
        service: "sealdrive.v1.ObjectService".into(),
    };
    assert_eq!(health.check(asked).await.unwrap().into_inner().status, 1);

    let watch = v1::WatchHeadRequest {
        drive: bytes_of(&client.drive().0),
    };
    let mut watch = client
        .drives()
        .watch_head(client.ask(watch))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().lease_epoch, epoch);
    let (send, messages) = tokio::sync::mpsc::channel(4);
    let open = v1::UploadOpen {
        drive: bytes_of(&client.drive().0),
        lease_epoch: epoch,
        gc_generation: GC,
    };
    send.send(v1::UploadRequest {
        open: Some(open),
        ..Default::default()
    })
    .await
    .unwrap();
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut upload = client
        .objects()
        .upload(client.ask(messages))
        .await
        .unwrap()
        .into_inner();

    let down = tokio::time::timeout(Duration::from_secs(5), server.shutdown()).await;
    down.expect("an idle mount must not hold the server up")
        .unwrap();
    assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(
        upload.message().await.unwrap_err().code(),
        Code::Unavailable
    );
}
