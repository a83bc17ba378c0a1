//! Who gets in: invitations, logins bound to their connection, and answers that tell a stranger nothing.

use std::collections::BTreeSet;

use crate::rig::{
    Client, GC, bytes_of, connect, genesis, key, login, register, serve, sid, with_token,
};
use bytes::Bytes;
use prost::Message as _;
use sealdrive_proto::id::{AccountId, DriveId};
use sealdrive_proto::link::{AccountChain, LinkBody};
use sealdrive_proto::transcript::{Binding, Role};
use sealdrive_proto::v1;
use sealdrive_server::store::StoreOptions;
use sealdrive_server::{Config, Server, StartError};
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_good_for_one_account() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let to = server.invite().unwrap();
    let (line, code) = (connect(&to).await, to.invite.unwrap());
    assert_eq!(
        register(&line, [9; 16], 1).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    register(&line, code, 1).await.unwrap();
    register(&line, code, 1)
        .await
        .expect("a lost answer, asked again");
    assert_eq!(
        register(&line, code, 2).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // The operator's command works beside the running server.
    let other = sealdrive_server::invite(dir.path(), "example.org:1", false).unwrap();
    register(&line, other.invite.unwrap(), 2).await.unwrap();
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_holds_for_one_connection_one_account_one_key() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let client = Client::new(&server, 1).await;
    let account = client.chain.account();
    let line = connect(server.connect_string()).await;
    let refused = |answer: Result<Bytes, Status>| {
        let status = answer.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "the proof does not hold")
        );
    };
    // An unknown account, an unknown device, another's key, and every field of the transcript: all told alike.
    refused(login(&line, AccountId([1; 32]), Role::Device, &key(1), |_| ()).await);
    refused(login(&line, account, Role::Device, &key(2), |_| ()).await);
    refused(login(&line, account, Role::SlotFetch, &key(1), |_| ()).await);
    refused(
        login(&line, account, Role::Device, &key(1), |t| {
            t.binding = client.line.binding
        })
        .await,
    );
    refused(
        login(&line, account, Role::Device, &key(1), |t| {
            t.binding = Binding::Loopback
        })
        .await,
    );
    refused(
        login(&line, account, Role::Device, &key(1), |t| {
            t.client_nonce = [0; 32]
        })
        .await,
    );
    refused(
        login(&line, account, Role::Device, &key(1), |t| {
            t.server_pk = [0; 32]
        })
        .await,
    );
    refused(
        login(&line, account, Role::Device, &key(1), |t| {
            t.server_time_ms += 1
        })
        .await,
    );
    login(&line, account, Role::Device, &key(1), |_| ())
        .await
        .unwrap();
    login(&line, account, Role::SlotFetch, &key(101), |_| ())
        .await
        .unwrap();

    // A stolen token is worth nothing on another connection.
    let mut accounts = v1::account_service_client::AccountServiceClient::new(line.channel.clone());
    let stolen = accounts
        .get_slot(with_token(v1::GetSlotRequest {}, &client.token))
        .await
        .unwrap_err();
    assert_eq!(stolen.code(), Code::Unauthenticated);
    client
        .accounts()
        .get_slot(client.ask(v1::GetSlotRequest {}))
        .await
        .unwrap();
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_out_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mut first = Client::new(&server, 1).await;
    let second = first.second(&server, 2).await;
    second.missing(&[sid(1)]).await.unwrap();
    let heads = vec![sealdrive_proto::link::DriveHead {
        drive: first.drive(),
        seq: 0,
        hash: sealdrive_proto::id::CommitHash::NONE,
    }];
    first
        .append(LinkBody::RevokeDevice {
            device: second.id(),
            heads,
        })
        .await;
    assert_eq!(
        second.missing(&[sid(1)]).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    let line = connect(server.connect_string()).await;
    let again = login(&line, first.chain.account(), Role::Device, &key(2), |_| ()).await;
    assert_eq!(again.unwrap_err().code(), Code::Unauthenticated);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_is_refused_off_loopback_and_one_directory_has_one_server() {
    let dir = tempfile::tempdir().unwrap();
    let config = |listen: &str| Config {
        data: dir.path().into(),
        listen: listen.parse().unwrap(),
        plaintext_loopback: true,
    };
    let refused = Server::start(config("0.0.0.0:0")).await;
    assert!(matches!(refused, Err(StartError::Plaintext(_))));
    let running = Server::start(config("127.0.0.1:0")).await.unwrap();
    assert!(running.connect_string().tls_fingerprint.is_none());
    assert!(matches!(
        Server::start(config("127.0.0.1:0")).await,
        Err(StartError::Busy)
    ));
    running.shutdown().await.unwrap();
}

/// One call of each kind, about `drive` and the domain of `about`, with a given token.
async fn call(
    line: &crate::rig::Line,
    token: Option<&[u8]>,
    about: &Client,
    name: &str,
) -> Result<(), Status> {
    use v1::account_service_client::AccountServiceClient;
    use v1::drive_service_client::DriveServiceClient;
    use v1::object_service_client::ObjectServiceClient;
    let (mut accounts, mut drives, mut objects) = (
        AccountServiceClient::new(line.channel.clone()),
        DriveServiceClient::new(line.channel.clone()),
        ObjectServiceClient::new(line.channel.clone()),
    );
    let (drive, domain) = (bytes_of(&about.drive().0), bytes_of(&about.domain().0));
    macro_rules! ask {
        ($message:expr) => {
            match token {
                Some(token) => with_token($message, token),
                None => tonic::Request::new($message),
            }
        };
    }
    let (commit, body) = about.sign_commit(&[], 1);
    match name {
        "Register" | "Hello" | "Login" => unreachable!("open to all"),
        "GetSlot" => accounts
            .get_slot(ask!(v1::GetSlotRequest {}))
            .await
            .map(drop),
        "PutSlot" => accounts
            .put_slot(ask!(v1::PutSlotRequest::default()))
            .await
            .map(drop),
        "GetChain" => accounts
            .get_chain(ask!(v1::GetChainRequest { from_seq: 0 }))
            .await
            .map(drop),
        "AppendLink" => {
            let link = bytes_of(genesis(77).bytes());
            accounts
                .append_link(ask!(v1::AppendLinkRequest { link }))
                .await
                .map(drop)
        }
        "AcquireLease" => {
            let request = v1::AcquireLeaseRequest {
                drive,
                ..Default::default()
            };
            drives.acquire_lease(ask!(request)).await.map(drop)
        }
        "ReleaseLease" => {
            let request = v1::ReleaseLeaseRequest {
                drive,
                ..Default::default()
            };
            drives.release_lease(ask!(request)).await.map(drop)
        }
        "GetHead" => drives
            .get_head(ask!(v1::GetHeadRequest { drive }))
            .await
            .map(drop),
        "GetCommits" => drives
            .get_commits(ask!(v1::GetCommitsRequest {
                drive,
                seqs: vec![1]
            }))
            .await
            .map(drop),
        "Commit" => {
            let request = v1::CommitRequest {
                commit: bytes_of(commit.bytes()),
                body,
                gc_generation: GC,
            };
            drives.commit(ask!(request)).await.map(drop)
        }
        "WatchHead" => drives
            .watch_head(ask!(v1::WatchHeadRequest { drive }))
            .await
            .map(drop),
        "FindMissing" => {
            let request = v1::FindMissingRequest {
                domain,
                sids: vec![bytes_of(&sid(1).0)],
            };
            objects.find_missing(ask!(request)).await.map(drop)
        }
        "Upload" => {
            let open = v1::UploadOpen {
                drive,
                lease_epoch: 1,
                gc_generation: GC,
            };
            let first = v1::UploadRequest {
                open: Some(open),
                ..Default::default()
            };
            objects
                .upload(ask!(tokio_stream::iter(vec![first])))
                .await
                .map(drop)
        }
        "Fetch" => {
            let request = v1::FetchRequest {
                domain,
                sids: vec![bytes_of(&sid(1).0)],
            };
            objects.fetch(ask!(request)).await.map(drop)
        }
        other => panic!("{other} is new: give it a row here, and say below who may call it"),
    }
}

/// Every RPC of the definition, against no token, a made-up token, the lesser role, and another account.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_refuses_strangers_and_tells_them_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let (mine, theirs) = (
        Client::new(&server, 1).await,
        Client::new(&server, 50).await,
    );
    let lesser = login(
        &mine.line,
        mine.chain.account(),
        Role::SlotFetch,
        &key(101),
        |_| (),
    )
    .await
    .unwrap();

    let files = prost_types::FileDescriptorSet::decode(v1::DESCRIPTOR).unwrap();
    let methods = files
        .file
        .iter()
        .flat_map(|file| &file.service)
        .flat_map(|service| &service.method);
    let names: BTreeSet<&str> = methods.map(|method| method.name()).collect();
    assert!(names.len() >= 16, "the definition was read");
    let open = ["Register", "Hello", "Login"];
    // Calls that name no drive or domain are about the caller's own account, whoever calls.
    let own_account = ["GetSlot", "PutSlot", "GetChain", "AppendLink"];
    let for_lesser = ["GetSlot", "GetChain", "AppendLink"];
    for name in names.iter().filter(|name| !open.contains(name)) {
        for token in [None, Some(&[][..]), Some(&[1; 32][..])] {
            let refused = call(&mine.line, token, &mine, name).await.unwrap_err();
            assert_eq!(
                (refused.code(), refused.message()),
                (Code::Unauthenticated, "log in first"),
                "{name}"
            );
        }
        if !for_lesser.contains(name) {
            let refused = call(&mine.line, Some(&lesser), &mine, name)
                .await
                .unwrap_err();
            assert_eq!(
                (refused.code(), refused.message()),
                (Code::NotFound, "not found"),
                "{name}, lesser role"
            );
        }
        if !own_account.contains(name) && *name != "Commit" {
            let foreign = call(&mine.line, Some(&mine.token), &theirs, name)
                .await
                .unwrap_err();
            assert_eq!(
                (foreign.code(), foreign.message()),
                (Code::NotFound, "not found"),
                "{name}, foreign"
            );
        }
    }
    // A commit names its drive inside; its body must be of the caller's domain first.
    let (commit, body) = theirs.sign_commit(&[], 1);
    assert_eq!(
        mine.commit(&commit, &body).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let own_body = crate::rig::object(mine.domain(), 1_000_001, 100);
    let mut fields = commit.fields().clone();
    fields.body_hash = sealdrive_proto::commit::body_hash(&own_body);
    let foreign = mine
        .commit(&fields.sign(&key(50)), &own_body)
        .await
        .unwrap_err();
    fields.drive = DriveId([9; 32]);
    let unknown = mine
        .commit(&fields.sign(&key(50)), &own_body)
        .await
        .unwrap_err();
    assert_eq!(
        (foreign.code(), foreign.message()),
        (Code::NotFound, unknown.message())
    );
    assert_eq!(unknown.code(), Code::NotFound);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lesser_role_can_enrol_a_device_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), StoreOptions::default()).await;
    let mine = Client::new(&server, 1).await;
    let line = connect(server.connect_string()).await;
    let token = login(
        &line,
        mine.chain.account(),
        Role::SlotFetch,
        &key(101),
        |_| (),
    )
    .await
    .unwrap();
    let mut accounts = v1::account_service_client::AccountServiceClient::new(line.channel.clone());
    let slot = accounts
        .get_slot(with_token(v1::GetSlotRequest {}, &token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (&slot.slot[..], &slot.key_box[..]),
        (&b"slot"[..], &b"key box"[..])
    );
    let chain = accounts
        .get_chain(with_token(v1::GetChainRequest { from_seq: 0 }, &token))
        .await
        .unwrap()
        .into_inner();
    let links: Vec<_> = chain
        .links
        .iter()
        .map(|link| sealdrive_proto::link::Link::parse(link).unwrap())
        .collect();
    let chain = AccountChain::replay(&links).unwrap();
    assert_eq!(chain, mine.chain);
    let device = sealdrive_proto::link::DeviceKeys {
        sign: key(3).verifying_key(),
        box_pk: Vec::new(),
    };
    let body = LinkBody::AddDevice {
        device,
        label: Vec::new(),
    };
    let enrol = chain
        .next_link(sealdrive_proto::link::Signer::Enrol, body)
        .sign(&key(102))
        .unwrap();
    let by_device = chain
        .next_link(
            sealdrive_proto::link::Signer::Device(mine.id()),
            LinkBody::RevokeDevice {
                device: mine.id(),
                heads: Vec::new(),
            },
        )
        .sign(&key(1))
        .unwrap();
    let mut append = async |link: &[u8]| {
        let request = v1::AppendLinkRequest {
            link: bytes_of(link),
        };
        accounts.append_link(with_token(request, &token)).await
    };
    assert_eq!(
        append(by_device.bytes()).await.unwrap_err().code(),
        Code::NotFound
    );
    append(enrol.bytes()).await.unwrap();
    append(enrol.bytes())
        .await
        .expect("an equal link answers accepted");
    login(&line, chain.account(), Role::Device, &key(3), |_| ())
        .await
        .expect("the new device is in");
    server.shutdown().await.unwrap();
}
