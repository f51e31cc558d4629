//! The HTTP form: `/v1/inbox/{user}` and `/v1/history/{room}`, as `proto/inbox.openapi.json` describes it.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Extension, Router};
use serde::Deserialize;
use serde_json::json;

use crate::api::access::Caller;
use crate::api::arguments::{cursor, device, required_cursor};
use crate::api::error::ApiError;
use crate::api::service::{InboxService, PushRequest};
use crate::api::view::{self, ReplayedView};
use crate::http_server::response::error_response;
use crate::inbox::{Owner, PageQuery};
use crate::message::{ConnectionId, RoomId, UserId};

/// The description of this API.
const OPENAPI: &str = include_str!("../../proto/inbox.openapi.json");
/// Maximum size of a request body, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Maximum length of a user's or room's id, in bytes.
const LONGEST_ID: usize = 1024;

/// The routes, each with its method.
fn routes() -> [(&'static str, &'static str, MethodRouter<InboxService>); 8] {
    [
        ("get", "/v1/inbox/{user}", get(read)),
        ("delete", "/v1/inbox/{user}", delete(erase)),
        ("get", "/v1/inbox/{user}/position", get(position)),
        ("post", "/v1/inbox/{user}/ack", post(acknowledge)),
        ("post", "/v1/inbox/{user}/replay", post(replay)),
        ("get", "/v1/history/{room}", get(read_history)),
        ("get", "/v1/history/{room}/position", get(history_position)),
        ("get", "/v1/openapi.json", get(openapi)),
    ]
}

/// The HTTP routes.
pub(super) fn router(service: InboxService) -> Router {
    let add = |router: Router<InboxService>, (_, path, route)| router.route(path, route);
    let router = routes().into_iter().fold(Router::new(), add);
    let unknown = || async { error_response(StatusCode::NOT_FOUND, "unknown path; see /v1/openapi.json") };
    router.fallback(unknown).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(service)
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadParameters {
    #[serde(default)]
    after: String,
    #[serde(default)]
    before: String,
    #[serde(default)]
    limit: u32,
    #[serde(default)]
    backwards: bool,
}

impl ReadParameters {
    /// The query, with the cursors of this owner.
    fn query<'a>(&self, owner: impl Into<Owner<'a>>) -> Result<PageQuery, ApiError> {
        let owner = owner.into();
        Ok(PageQuery {
            after: cursor("after", &self.after, owner)?,
            before: cursor("before", &self.before, owner)?,
            limit: self.limit as usize,
            backwards: self.backwards,
            ..PageQuery::default()
        })
    }
}

async fn read(
    State(service): State<InboxService>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
    parameters: Result<Query<ReadParameters>, QueryRejection>,
) -> Result<Response, Response> {
    let user: UserId = id("user", &user)?;
    let Query(parameters) = parameters.map_err(|why| bad_request(&why.body_text()))?;
    let query = parameters.query(&user)?;
    let page = service.page(&caller, (&user).into(), query).await?;
    Ok(Json(view::page(page, &user)).into_response())
}

async fn read_history(
    State(service): State<InboxService>,
    Extension(caller): Extension<Caller>,
    Path(room): Path<String>,
    parameters: Result<Query<ReadParameters>, QueryRejection>,
) -> Result<Response, Response> {
    let room: RoomId = id("room", &room)?;
    let Query(parameters) = parameters.map_err(|why| bad_request(&why.body_text()))?;
    let query = parameters.query(&room)?;
    let page = service.page(&caller, (&room).into(), query).await?;
    Ok(Json(view::page(page, &room)).into_response())
}

async fn history_position(
    State(service): State<InboxService>,
    Extension(caller): Extension<Caller>,
    Path(room): Path<String>,
) -> Result<Response, Response> {
    let room: RoomId = id("room", &room)?;
    let standing = service.position(&caller, (&room).into(), None).await?;
    Ok(Json(view::position(&standing, &room)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PositionParameters {
    device: Option<String>,
}

async fn position(
    State(service): State<InboxService>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
    parameters: Result<Query<PositionParameters>, QueryRejection>,
) -> Result<Response, Response> {
    let user: UserId = id("user", &user)?;
    let Query(parameters) = parameters.map_err(|why| bad_request(&why.body_text()))?;
    let device = parameters.device.as_deref().map(device).transpose()?;
    let standing = service.position(&caller, (&user).into(), device.as_ref()).await?;
    Ok(Json(view::position(&standing, &user)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledgement {
    device: String,
    cursor: String,
}

async fn acknowledge(
    State(service): State<InboxService>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
    body: Result<Json<Acknowledgement>, JsonRejection>,
) -> Result<Response, Response> {
    let user: UserId = id("user", &user)?;
    let Json(body) = body.map_err(|why| bad_body(&why))?;
    let device = device(&body.device)?;
    let cursor = required_cursor("cursor", &body.cursor, &user)?;
    let standing = service.acknowledge(&caller, &user, &device, cursor).await?;
    Ok(Json(view::position(&standing, &user)).into_response())
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReplayParameters {
    connection: Option<String>,
    device: Option<String>,
    after: String,
    limit: u32,
    acknowledge: bool,
}

async fn replay(
    State(service): State<InboxService>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
    body: Result<Json<ReplayParameters>, JsonRejection>,
) -> Result<Response, Response> {
    let user: UserId = id("user", &user)?;
    let Json(body) = body.map_err(|why| bad_body(&why))?;
    let device = body.device.as_deref().map(device).transpose()?;
    if body.acknowledge && device.is_none() {
        return Err(ApiError::invalid("device", "`acknowledge` needs one").into());
    }
    let request = PushRequest {
        connection: body.connection.map(ConnectionId::from),
        device,
        after: cursor("after", &body.after, &user)?,
        limit: body.limit as usize,
        acknowledge: body.acknowledge,
    };
    let replayed = service.push(&caller, &user, request).await?;
    Ok(Json(ReplayedView::new(&replayed, &user)).into_response())
}

async fn erase(
    State(service): State<InboxService>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
) -> Result<Response, Response> {
    let user: UserId = id("user", &user)?;
    let deleted = service.delete(&caller, &user).await?;
    Ok(Json(json!({ "deleted": deleted.inbox, "archived": deleted.archive })).into_response())
}

/// The id of a user or a room.
fn id<I: for<'a> From<&'a str>>(kind: &'static str, text: &str) -> Result<I, ApiError> {
    if text.is_empty() || text.len() > LONGEST_ID {
        return Err(ApiError::invalid(kind, format!("a {kind}'s id has 1 to {LONGEST_ID} bytes")));
    }
    Ok(text.into())
}

fn bad_request(why: &str) -> Response {
    error_response(StatusCode::BAD_REQUEST, why)
}

fn bad_body(why: &JsonRejection) -> Response {
    error_response(why.status(), &why.body_text())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_has_exactly_these_routes() {
        let description: serde_json::Value = serde_json::from_str(OPENAPI).expect("valid JSON");
        let paths = description["paths"].as_object().expect("an object");
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("an object").keys();
                methods.filter(|method| *method != "parameters").map(|method| (method.clone(), path.clone()))
            })
            .collect();
        let served = routes().into_iter().map(|(method, path, _)| (method.to_owned(), path.to_owned()));
        assert_eq!(described, served.collect());
    }
}
