//! A fake of goim's discovery (bilibili/discovery): `GET /discovery/fetch`, from a list that tests
//! change.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A running discovery.
pub struct FakeDiscovery {
    address: SocketAddr,
    comets: Arc<Mutex<Vec<(String, String)>>>,
    /// Stopped on drop.
    _server: JoinSet<()>,
}

#[derive(serde::Deserialize)]
struct FetchQuery {
    appid: String,
    env: String,
    status: String,
}

impl FakeDiscovery {
    /// Starts without comets.
    pub async fn start() -> Self {
        let comets = Arc::<Mutex<Vec<(String, String)>>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new().route("/discovery/fetch", get(fetch)).with_state(Arc::clone(&comets));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, comets, _server: server }
    }

    /// Its address for `[comets.discovery] goim`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Registers these comets, by hostname and address.
    pub fn set(&self, comets: &[(&str, &str)]) {
        let comets = comets.iter().map(|(name, at)| ((*name).to_owned(), (*at).to_owned())).collect();
        *self.comets.lock() = comets;
    }
}

/// Comets by hostname and address.
type Registered = Arc<Mutex<Vec<(String, String)>>>;

async fn fetch(State(comets): State<Registered>, Query(asked): Query<FetchQuery>) -> Json<Value> {
    if (asked.appid.as_str(), asked.env.as_str(), asked.status.as_str()) != ("goim.comet", "dev", "1") {
        return Json(json!({ "code": -404, "message": "-404" }));
    }
    let comets = comets.lock();
    let instance = |(name, address): &(String, String)| json!({ "hostname": name, "addrs": ["http://10.0.0.1:1", format!("grpc://{address}")], "status": 1 });
    let instances: Vec<_> = comets.iter().map(instance).collect();
    Json(json!({ "code": 0, "data": { "instances": { "sh001": instances }, "latest_timestamp": 1 } }))
}
