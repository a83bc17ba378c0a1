//! Leases fence, heads move by compare-and-swap, and both survive whatever the process does not.

use std::time::Duration;

use crate::rig::{Client, bytes_of, serve};
use sealdrive_proto::commit::SignedCommit;
use sealdrive_proto::v1;
use sealdrive_server::store::StoreOptions;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_fences_the_former_holder() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut first = Client::new(&server, 1).await;
    let mut second = first.second(&server, 2).await;
    let one = first.lease(false, 0).await.unwrap();
    assert!(one.granted && one.holder == bytes_of(&first.id().0));
    let refused = second.lease(false, 0).await.unwrap();
    assert!(
        !refused.granted && refused.holder == bytes_of(&first.id().0),
        "somebody holds it"
    );
    let renewed = first.lease(false, one.lease_epoch).await.unwrap();
    assert_eq!(
        (renewed.granted, renewed.lease_epoch),
        (true, one.lease_epoch)
    );
    let (commit, body) = first.sign_commit(&[], one.lease_epoch);
    assert!(first.commit(&commit, &body).await.unwrap().accepted);

    let two = second.lease(true, 0).await.unwrap();
    assert!(two.granted && two.lease_epoch > one.lease_epoch);
    let (late, late_body) = first.sign_commit(std::slice::from_ref(&commit), one.lease_epoch);
    let fenced = first.commit(&late, &late_body).await.unwrap();
    assert!(!fenced.accepted && fenced.lease_epoch == two.lease_epoch);
    assert_eq!(fenced.head, bytes_of(commit.bytes()));
    let upload = first
        .upload(
            one.lease_epoch,
            vec![crate::rig::object(first.domain(), 1, 10)],
        )
        .await
        .unwrap_err();
    assert!(upload.code() == Code::FailedPrecondition && upload.message().contains("lease"));
    assert!(
        first.commit(&commit, &body).await.unwrap().accepted,
        "what is in the chain already answers accepted"
    );

    let (next, next_body) = second.sign_commit(std::slice::from_ref(&commit), two.lease_epoch);
    assert!(second.commit(&next, &next_body).await.unwrap().accepted);
    second.release(two.lease_epoch).await.unwrap();
    assert!(
        first.lease(false, 0).await.unwrap().granted,
        "given back, taken at once"
    );

    // The epochs survive: a lease of the past is past for ever.
    drop(server);
    let server = serve(dir.path(), StoreOptions::default()).await;
    let second = second.again(&server).await;
    let (stale, stale_body) = second.sign_commit(&[commit, next], two.lease_epoch);
    assert!(!second.commit(&stale, &stale_body).await.unwrap().accepted);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_move_one_commit_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut client = Client::new(&server, 1).await;
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let head = client.head().await;
    assert!(head.commit.is_empty(), "no commit yet");
    let mut chain: Vec<SignedCommit> = Vec::new();
    let mut bodies = Vec::new();
    for _ in 0..9 {
        let (commit, body) = client.sign_commit(&chain, epoch);
        assert!(client.commit(&commit, &body).await.unwrap().accepted);
        chain.push(commit);
        bodies.push(body);
    }
    let head = client.head().await;
    assert_eq!(
        (&head.commit[..], &head.body),
        (&chain[8].bytes()[..], &bodies[8])
    );
    assert!(head.received_ms > 1_500_000_000_000);

    let refuse = async |commit: &SignedCommit, body, why: &str| {
        let answer = client.commit(commit, body).await.unwrap();
        assert!(
            !answer.accepted && answer.head == bytes_of(chain[8].bytes()),
            "{why}"
        );
    };
    let (fork, fork_body) = client.sign_commit(&chain[..5], epoch);
    let mut fields = fork.fields().clone();
    fields.device_seq += 100;
    let fork = fields.sign(&client.device);
    assert_ne!(fork, chain[5]);
    refuse(&fork, &fork_body, "a fork").await;
    let (mut ahead, body) = client.sign_commit(&chain, epoch);
    let mut fields = ahead.fields().clone();
    fields.seq = 11;
    ahead = fields.sign(&client.device);
    refuse(&ahead, &body, "a gap").await;
    let (good, body) = client.sign_commit(&chain, epoch);
    let code = async |commit: &SignedCommit| client.commit(commit, &body).await.unwrap_err().code();
    assert_eq!(
        code(&good.fields().sign(&crate::rig::key(9))).await,
        Code::NotFound,
        "another's signature"
    );
    let mut fields = good.fields().clone();
    fields.skip = chain[0].hash();
    assert_eq!(
        code(&fields.sign(&client.device)).await,
        Code::InvalidArgument,
        "a wrong skip hash"
    );
    let mut fields = good.fields().clone();
    fields.body_hash = [0; 32];
    assert_eq!(
        code(&fields.sign(&client.device)).await,
        Code::InvalidArgument,
        "another body"
    );
    for (at, commit) in chain.iter().enumerate() {
        assert!(
            client.commit(commit, &bodies[at]).await.unwrap().accepted,
            "sent again"
        );
    }

    // After a crash everything is known again, also what a skip hash may reach: commit 10 skips to 8.
    drop(server);
    let server = serve(dir.path(), StoreOptions::default()).await;
    let client = client.again(&server).await;
    let (mut next, body) = client.sign_commit(&chain, epoch);
    let mut fields = next.fields().clone();
    fields.skip = chain[3].hash();
    let wrong = client
        .commit(&fields.sign(&client.device), &body)
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    fields.skip = chain[7].hash();
    next = fields.sign(&client.device);
    assert!(client.commit(&next, &body).await.unwrap().accepted);
    chain.push(next);
    let request = v1::GetCommitsRequest {
        drive: bytes_of(&client.drive().0),
        seqs: vec![10, 1, 8],
    };
    let got = client
        .drives()
        .get_commits(client.ask(request))
        .await
        .unwrap()
        .into_inner()
        .commits;
    assert_eq!(got, [9, 0, 7].map(|at: usize| bytes_of(chain[at].bytes())));
    server.shutdown().await.unwrap();

    // And the packs alone know it all.
    std::fs::remove_file(dir.path().join("index.redb")).unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let client = client.again(&server).await;
    assert_eq!(client.head().await.commit, bytes_of(chain[9].bytes()));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_swap_at_once_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut client = Client::new(&server, 1).await;
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let rivals: Vec<_> = (0..16)
        .map(|n| {
            let (commit, body) = client.sign_commit(&[], epoch);
            let mut fields = commit.fields().clone();
            fields.device_seq += n;
            (fields.sign(&client.device), body)
        })
        .collect();
    let mut swaps = tokio::task::JoinSet::new();
    for (commit, body) in &rivals {
        let request = v1::CommitRequest {
            commit: bytes_of(commit.bytes()),
            body: body.clone(),
            gc_generation: crate::rig::GC,
        };
        let (mut drives, request) = (client.drives(), client.ask(request));
        swaps.spawn(async move { drives.commit(request).await.unwrap().into_inner().accepted });
    }
    let accepted = swaps
        .join_all()
        .await
        .into_iter()
        .filter(|accepted| *accepted)
        .count();
    assert_eq!(accepted, 1);
    let head = client.head().await.commit;
    assert!(
        rivals
            .iter()
            .any(|(commit, _)| commit.bytes()[..] == head[..])
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_each_change() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut client = Client::new(&server, 1).await;
    let watch = v1::WatchHeadRequest {
        drive: bytes_of(&client.drive().0),
    };
    let mut watch = client
        .drives()
        .watch_head(client.ask(watch))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap(),
        v1::WatchHeadResponse::default()
    );
    let epoch = client.lease(false, 0).await.unwrap().lease_epoch;
    let (commit, body) = client.sign_commit(&[], epoch);
    client.commit(&commit, &body).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let seen = watch.message().await.unwrap().unwrap();
            if !seen.commit.is_empty() {
                return seen;
            }
        }
    });
    let seen = seen.await.unwrap();
    assert_eq!(
        (&seen.commit[..], seen.lease_epoch),
        (&commit.bytes()[..], epoch)
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_call_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut client = Client::new(&server, 1).await;
    client.lease(false, 0).await.unwrap();
    client.calls -= 1;
    assert_eq!(
        client.lease(false, 0).await.unwrap_err().code(),
        Code::NotFound,
        "a number used twice"
    );
    client.calls += 5;
    let drive = client.drive();
    let call = sealdrive_proto::transcript::Call::AcquireLease {
        drive,
        take_over: false,
        held_epoch: 0,
    };
    let proof = client.prove(&call);
    let request = v1::AcquireLeaseRequest {
        drive: bytes_of(&drive.0),
        take_over: true,
        held_epoch: 0,
        proof,
    };
    assert_eq!(
        client
            .drives()
            .acquire_lease(client.ask(request))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    server.shutdown().await.unwrap();
}
