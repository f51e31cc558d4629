//! What can be looked at: health, metrics, policies, comets, routes. Changes nothing.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;
use serde_json::json;

use crate::admin::{ROUTE_DEADLINE, failed};
use crate::gateway::Handle;
use crate::message::{CometAddr, RoomId};
use crate::router::{Part, Route};

pub(super) async fn ready(State(gateway): State<Handle>) -> Response {
    let problems = gateway.problems();
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let warnings = gateway.warnings();
    let answer = json!({ "ready": problems.is_empty(), "reasons": problems, "warnings": warnings });
    (status, Json(answer)).into_response()
}

pub(super) async fn metrics(State(gateway): State<Handle>) -> Response {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match gateway.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

pub(super) async fn plugins(State(gateway): State<Handle>) -> Response {
    Json(gateway.policies()).into_response()
}

/// One plugin: what is in force of it, what decides instead of its file, what was refused.
pub(super) async fn plugin(State(gateway): State<Handle>, Path(name): Path<String>) -> Response {
    let status = gateway.policies();
    let plugin = status.plugins.iter().find(|plugin| plugin.name == name);
    if plugin.is_none() && !gateway.steering().is_configured(&name) {
        return unknown(&name);
    }
    let answer = json!({
        "name": name,
        "generation": status.generation,
        "plugin": plugin,
        "override": status.overrides.get(&name),
        "last_refusal": status.last_refusal,
    });
    Json(answer).into_response()
}

/// What is kept of a plugin.
pub(super) async fn versions(State(gateway): State<Handle>, Path(name): Path<String>) -> Response {
    match gateway.steering().versions(&name) {
        Some(versions) => Json(json!({ "name": name, "versions": versions })).into_response(),
        None if gateway.steering().is_configured(&name) => {
            Json(json!({ "name": name, "versions": [] })).into_response()
        }
        None => unknown(&name),
    }
}

/// The answer for a plugin that nobody has heard of.
pub(super) fn unknown(name: &str) -> Response {
    let error = format!("plugin `{name}` is not configured; add a [[plugin]] of this name");
    failed(StatusCode::NOT_FOUND, &error)
}

pub(super) async fn comets(State(gateway): State<Handle>) -> Response {
    Json(json!({ "comets": gateway.comets() })).into_response()
}

pub(super) async fn route(State(gateway): State<Handle>, Path(room): Path<String>) -> Response {
    let room = RoomId::from(room);
    match tokio::time::timeout(ROUTE_DEADLINE, gateway.route(&room)).await {
        Ok(Ok(route)) => Json(RouteView::new(&room, &route)).into_response(),
        Ok(Err(error)) => failed(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}")),
        Err(_) => failed(StatusCode::GATEWAY_TIMEOUT, "the directory did not answer in time"),
    }
}

/// A route as the API shows it: counts, and the first connections of each share.
#[derive(Serialize)]
struct RouteView<'a> {
    room: &'a RoomId,
    connections: usize,
    stale: usize,
    skipped: usize,
    absent: usize,
    shares: Vec<ShareView<'a>>,
}

#[derive(Serialize)]
struct ShareView<'a> {
    comet: &'a CometAddr,
    call: &'static str,
    recipients: usize,
    first: Vec<&'a str>,
}

/// A room can have a hundred thousand connections; nobody reads them all here.
const CONNECTIONS_SHOWN: usize = 20;

impl<'a> RouteView<'a> {
    fn new(room: &'a RoomId, route: &'a Route) -> Self {
        let shares = route.shares.iter().map(|share| ShareView {
            comet: &share.comet,
            call: match share.part {
                Part::Whole => "BroadcastRoom",
                Part::Partial => "PushMsg",
            },
            recipients: share.recipients.len(),
            first: share.recipients.iter().take(CONNECTIONS_SHOWN).map(|r| r.connection.as_str()).collect(),
        });
        Self {
            room,
            connections: route.connections,
            stale: route.stale,
            skipped: route.skipped,
            absent: route.absent.len(),
            shares: shares.collect(),
        }
    }
}
