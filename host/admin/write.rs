//! What changes the policies in force: pushes, and an operator's word about one plugin. Answers
//! when the change is in force, or with every reason why it is not.
//!
//! A change that was asked for is carried out to its end, also when whoever asked hangs up.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::json;

use crate::admin::auth::Outcome;
use crate::admin::upload::{self, Received};
use crate::admin::{App, failed, read};
use crate::policy::{Generation, Policies, Problem, Refused};

/// How long an answer is waited for. Compiling takes seconds for large plugins.
const CARRYING_OUT: Duration = Duration::from_secs(120);

/// `?to=HASH` of a rollback.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Back {
    to: Option<String>,
}

pub(super) async fn push_one(State(app): State<App>, Path(name): Path<String>, request: Request) -> Response {
    if !app.gateway.steering().is_configured(&name) {
        return read::unknown(&name);
    }
    match upload::one(&app, name, request).await {
        Ok(received) => push(&app, received).await,
        Err(response) => response,
    }
}

pub(super) async fn push_several(State(app): State<App>, request: Request) -> Response {
    match upload::several(&app, request).await {
        Ok(received) => push(&app, received).await,
        Err(response) => response,
    }
}

async fn push(app: &App, received: Received) -> Response {
    let Received { uploads, place } = received;
    let names: Vec<String> = uploads.iter().map(|upload| upload.name.clone()).collect();
    if let Some(unknown) = names.iter().find(|name| !app.gateway.steering().is_configured(name)) {
        return read::unknown(unknown);
    }
    let change = move |policies: Arc<Policies>| async move {
        let _place = place;
        policies.push(uploads).await
    };
    carry_out(app, &names, change).await
}

pub(super) async fn rollback(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Result<Query<Back>, QueryRejection>,
) -> Response {
    let Back { to } = match query {
        Ok(Query(query)) => query,
        Err(rejected) => return failed(StatusCode::BAD_REQUEST, &rejected.body_text()),
    };
    steer(app, name, |policies, name| async move { policies.rollback(&name, to.as_deref()).await }).await
}

pub(super) async fn release(State(app): State<App>, Path(name): Path<String>) -> Response {
    steer(app, name, |policies, name| async move { policies.release(&name).await }).await
}

/// Carries out an operator's word about one plugin.
async fn steer<F>(app: App, name: String, word: impl FnOnce(Arc<Policies>, String) -> F) -> Response
where
    F: Future<Output = Result<Generation, Refused>> + Send + 'static,
{
    if !app.gateway.steering().is_configured(&name) {
        return read::unknown(&name);
    }
    carry_out(&app, std::slice::from_ref(&name), |policies| word(policies, name.clone())).await
}

async fn carry_out<F>(app: &App, names: &[String], change: impl FnOnce(Arc<Policies>) -> F) -> Response
where
    F: Future<Output = Result<Generation, Refused>> + Send + 'static,
{
    let task = app.tasks.spawn(change(Arc::clone(app.gateway.steering())));
    match tokio::time::timeout(CARRYING_OUT, task).await {
        Ok(Ok(Ok(generation))) => in_force(app, names, generation),
        Ok(Ok(Err(refused))) => not_taken(&refused),
        Ok(Err(error)) => {
            failed(StatusCode::INTERNAL_SERVER_ERROR, &format!("the change ended early: {error}"))
        }
        Err(_) => failed(
            StatusCode::GATEWAY_TIMEOUT,
            "the change takes long and goes on; GET /v1/plugins shows what comes of it",
        ),
    }
}

fn in_force(app: &App, names: &[String], generation: Generation) -> Response {
    let mut plugins = app.gateway.policies().plugins;
    plugins.retain(|plugin| names.contains(&plugin.name));
    let versions: Vec<String> =
        plugins.iter().map(|plugin| format!("{} {}", plugin.name, &plugin.hash[..12])).collect();
    let answer = Json(json!({ "generation": generation, "plugins": plugins })).into_response();
    with_outcome(answer, format!("generation {generation}: {}", versions.join(", ")))
}

fn not_taken(refused: &Refused) -> Response {
    let problems: Vec<String> = refused.problems.iter().map(Problem::to_string).collect();
    let error = "refused; the policies in force stay";
    let answer = Json(json!({ "error": error, "problems": problems }));
    with_outcome((StatusCode::UNPROCESSABLE_ENTITY, answer).into_response(), refused.to_string())
}

fn with_outcome(mut response: Response, outcome: String) -> Response {
    response.extensions_mut().insert(Outcome(outcome));
    response
}
