//! DriveService: lease, head, commits.
//!
//! Invariant: nothing is decided here; `calls/drives.rs` does. Called by tonic.

use std::sync::Arc;

use sealdrive_proto::id::DriveId;
use sealdrive_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::device;
use crate::calls::{self, CallError, field};
use crate::core::Core;

pub(super) struct Drives(pub(super) Arc<Core>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::drive_service_server::DriveService for Drives {
    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Answer<v1::AcquireLeaseResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let answer = calls::acquire_lease(Arc::clone(&self.0), caller, asked).await?;
        Ok(Response::new(answer))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Answer<v1::ReleaseLeaseResponse> {
        let caller = device(&self.0, &request)?;
        let asked = request.into_inner();
        let answer = calls::release_lease(Arc::clone(&self.0), caller, asked).await?;
        Ok(Response::new(answer))
    }

    async fn get_head(&self, request: Request<v1::GetHeadRequest>) -> Answer<v1::GetHeadResponse> {
        let caller = device(&self.0, &request)?;
        let answer = calls::head(&self.0, &caller, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn get_commits(
        &self,
        request: Request<v1::GetCommitsRequest>,
    ) -> Answer<v1::GetCommitsResponse> {
        let caller = device(&self.0, &request)?;
        let answer = calls::commits(&self.0, &caller, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answer<v1::CommitResponse> {
        let caller = device(&self.0, &request)?;
        let answer = calls::commit(Arc::clone(&self.0), caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    type WatchHeadStream = ReceiverStream<Result<v1::WatchHeadResponse, Status>>;

    async fn watch_head(
        &self,
        request: Request<v1::WatchHeadRequest>,
    ) -> Answer<Self::WatchHeadStream> {
        let caller = device(&self.0, &request)?;
        let drive: DriveId = field(&request.get_ref().drive, "drive")?;
        let mut changes = self.0.watch(&drive);
        // Looked up after the watch began, so that no change falls in between.
        let first = calls::watched(&self.0, &caller, &drive)?;
        let (out, answers) = mpsc::channel(1);
        let core = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut next = Ok(first);
            loop {
                let last = next.is_err();
                if out.send(next).await.is_err() || last {
                    return;
                }
                next = tokio::select! {
                    () = out.closed() => return,
                    () = core.stopping() => Err(CallError::Stopping.into()),
                    changed = changes.changed() => match changed {
                        Ok(()) => calls::watched(&core, &caller, &drive).map_err(Status::from),
                        Err(_) => return,
                    },
                };
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
