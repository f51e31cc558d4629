//! The gRPC form: `halley.inbox.v1.Inbox`, and reflection.

use axum::Router;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status};

use crate::api::access::Caller;
use crate::api::arguments::{self, cursor, optional_device, required_cursor};
use crate::api::error::ApiError;
use crate::api::proto::DESCRIPTORS;
use crate::api::proto::inbox::inbox_server::{Inbox, InboxServer};
use crate::api::proto::inbox::{
    AcknowledgeRequest, Owner, Page, PositionReply, PositionRequest, ReadRequest, ReplayRequest, owner,
};
use crate::api::service::InboxService;
use crate::api::view;
use crate::inbox::{self, PageQuery};
use crate::message::{RoomId, UserId};

/// Maximum size of a request, in bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// The gRPC services.
pub(super) fn router(service: InboxService) -> Router {
    let inbox = InboxServer::new(GrpcInbox(service)).max_decoding_message_size(MAX_REQUEST);
    let mut router = Router::new().route_service("/halley.inbox.v1.Inbox/{method}", inbox);
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    // The descriptors come from the build: they are valid.
    if let Ok(reflection) = reflection().build_v1() {
        router = router.route_service("/grpc.reflection.v1.ServerReflection/{method}", reflection);
    }
    if let Ok(reflection) = reflection().build_v1alpha() {
        router = router.route_service("/grpc.reflection.v1alpha.ServerReflection/{method}", reflection);
    }
    router
}

/// The service, with gRPC's types.
struct GrpcInbox(InboxService);

/// The caller, whom access control has noted.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("the request passed no access control"))
}

#[tonic::async_trait]
impl Inbox for GrpcInbox {
    async fn position(&self, request: Request<PositionRequest>) -> Result<Response<PositionReply>, Status> {
        let caller = caller(&request)?;
        let PositionRequest { owner, device } = request.into_inner();
        if let Some(room) = room_of(&owner) {
            let standing = self.0.position(&caller, (&room).into(), None).await?;
            return Ok(Response::new(view::position(&standing, &room)));
        }
        let user = user_of(owner)?;
        let device = optional_device(&device)?;
        let standing = self.0.position(&caller, (&user).into(), device.as_ref()).await?;
        Ok(Response::new(view::position(&standing, &user)))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Page>, Status> {
        let caller = caller(&request)?;
        let ReadRequest { owner, after, before, limit, backwards } = request.into_inner();
        let query = |owner: inbox::Owner<'_>| -> Result<PageQuery, ApiError> {
            let (after, before) = (cursor("after", &after, owner)?, cursor("before", &before, owner)?);
            Ok(PageQuery { after, before, limit: limit as usize, backwards, ..PageQuery::default() })
        };
        if let Some(room) = room_of(&owner) {
            let page = self.0.page(&caller, (&room).into(), query((&room).into())?).await?;
            return Ok(Response::new(view::page(page, &room)));
        }
        let user = user_of(owner)?;
        let page = self.0.page(&caller, (&user).into(), query((&user).into())?).await?;
        Ok(Response::new(view::page(page, &user)))
    }

    type ReplayStream = BoxStream<'static, Result<Page, Status>>;

    async fn replay(&self, request: Request<ReplayRequest>) -> Result<Response<Self::ReplayStream>, Status> {
        let caller = caller(&request)?;
        let ReplayRequest { owner, device, connection, after, follow, page } = request.into_inner();
        let user = user_of(owner)?;
        let device = optional_device(&device)?;
        // Empty is the oldest; absent is what the device has acknowledged.
        let (start, device) = match after {
            None => (None, device),
            Some(after) => (cursor("after", &after, &user)?, None),
        };
        let query = PageQuery { after: start, limit: page as usize, ..PageQuery::default() };
        tracing::debug!(%user, connection, follow, "an inbox is replayed");
        let pages = self.0.replay(&caller, user.clone(), device, query, follow).await?;
        let replies = pages.map(move |page| match page {
            Ok(page) => Ok(view::page(page, &user)),
            Err(error) => Err(error.into()),
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn acknowledge(
        &self,
        request: Request<AcknowledgeRequest>,
    ) -> Result<Response<PositionReply>, Status> {
        let caller = caller(&request)?;
        let AcknowledgeRequest { owner, device, cursor } = request.into_inner();
        let user = user_of(owner)?;
        let device = arguments::device(&device)?;
        let cursor = required_cursor("cursor", &cursor, &user)?;
        let standing = self.0.acknowledge(&caller, &user, &device, cursor).await?;
        Ok(Response::new(view::position(&standing, &user)))
    }
}

/// The room, if the request is about one.
fn room_of(owner: &Option<Owner>) -> Option<RoomId> {
    match owner.as_ref()?.owner.as_ref()? {
        owner::Owner::Room(room) if !room.is_empty() => Some(room.as_str().into()),
        _ => None,
    }
}

fn user_of(owner: Option<Owner>) -> Result<UserId, ApiError> {
    match owner.and_then(|owner| owner.owner) {
        Some(owner::Owner::User(user)) if !user.is_empty() => Ok(user.into()),
        Some(owner::Owner::Room(_)) => Err(ApiError::Unsupported("histories of rooms are read page by page")),
        Some(owner::Owner::User(_)) | None => Err(ApiError::invalid("owner", "a user is required")),
    }
}
