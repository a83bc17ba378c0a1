//! ObjectService: find, upload, fetch.
//!
//! Invariant: nothing is decided here; `calls/objects.rs` does. Called by tonic.

use std::sync::Arc;

use sealdrive_proto::v1;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::device;
use crate::calls;
use crate::core::Core;

pub(super) struct Objects(pub(super) Arc<Core>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::object_service_server::ObjectService for Objects {
    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Answer<v1::FindMissingResponse> {
        let caller = device(&self.0, &request)?;
        let answer = calls::find_missing(&self.0, &caller, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    type UploadStream = ReceiverStream<Result<v1::UploadResponse, Status>>;

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Answer<Self::UploadStream> {
        let caller = device(&self.0, &request)?;
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap_or_default();
        let answers = calls::upload(Arc::clone(&self.0), caller, first.open, inbound)?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    type FetchStream = ReceiverStream<Result<v1::FetchResponse, Status>>;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Answer<Self::FetchStream> {
        let caller = device(&self.0, &request)?;
        let answers = calls::fetch(&self.0, &caller, request.get_ref())?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
