//! goim's discovery, where goim's comets register and which its job queries: `GET
//! /discovery/fetch?appid=…&env=…&zone=…&status=1` (github.com/bilibili/discovery, doc/api.md).
//!
//! As in goim's job, an instance is a comet if it has an address with the scheme `grpc`, its
//! `hostname` is the server name, and an answer without comets is ignored.

use std::time::Duration;

use reqwest::Client;
use serde_json::Value;

use super::config::Config;
use super::listing::{CometListing, SourceError};

/// Timeout of one server.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum size of an answer.
const MAX_ANSWER: usize = 16 << 20;

/// The discovery's servers.
pub(super) struct GoimDiscovery {
    client: Client,
    urls: Vec<String>,
    /// The one that answered last.
    at: usize,
    query: Vec<(&'static str, String)>,
}

impl GoimDiscovery {
    /// `None` without URLs.
    pub(super) fn new(config: &Config) -> Option<Self> {
        if config.goim.is_empty() {
            return None;
        }
        // This fails only with a broken TLS library; then plain HTTP still works.
        let client = Client::builder().timeout(TIMEOUT).no_proxy().build().unwrap_or_default();
        let mut query =
            vec![("appid", config.appid.clone()), ("env", config.env.clone()), ("status", "1".to_owned())];
        if !config.zone.is_empty() {
            query.push(("zone", config.zone.clone()));
        }
        Some(Self { client, urls: config.goim.clone(), at: 0, query })
    }

    /// The registered comets, from the first server that answers.
    pub(super) async fn fetch(&mut self) -> Result<CometListing, SourceError> {
        let mut problems = Vec::new();
        for step in 0..self.urls.len() {
            let at = (self.at + step) % self.urls.len();
            match self.ask(&self.urls[at]).await {
                Ok(listing) => {
                    self.at = at;
                    return Ok(listing);
                }
                Err(error) => problems.push(format!("{}: {error}", self.urls[at])),
            }
        }
        Err(SourceError::new(problems.join("; ")))
    }

    async fn ask(&self, url: &str) -> Result<CometListing, SourceError> {
        let url = format!("{}/discovery/fetch", url.trim_end_matches('/'));
        // reqwest's errors begin with the URL, which the caller adds already.
        let said = |error: reqwest::Error| match std::error::Error::source(&error) {
            Some(source) => SourceError::new(source),
            None => SourceError::new(error.without_url()),
        };
        let mut answer = self.client.get(url).query(&self.query).send().await.map_err(said)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(said)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(SourceError::new(format!("the answer is longer than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        let status = answer.status();
        let not_json = |_| SourceError::new(format!("status {status}, and not JSON"));
        let body = serde_json::from_slice(&body).map_err(not_json)?;
        listing(&body)
    }
}

fn listing(body: &Value) -> Result<CometListing, SourceError> {
    if body["code"] != 0 {
        let (code, message) = (&body["code"], &body["message"]);
        return Err(SourceError::new(format!("it answers with code {code}: {message}")));
    }
    let mut listing = CometListing::default();
    collect(&body["data"]["instances"], &mut listing);
    Ok(listing)
}

/// Instances are in one list per zone.
fn collect(value: &Value, listing: &mut CometListing) {
    match value {
        Value::Array(instances) => instances.iter().for_each(|instance| add(instance, listing)),
        Value::Object(zones) => zones.values().for_each(|zone| collect(zone, listing)),
        _ => {}
    }
}

fn add(instance: &Value, listing: &mut CometListing) {
    let addrs = instance["addrs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut texts = addrs.iter().filter_map(Value::as_str);
    let Some(address) = texts.find(|address| address.starts_with("grpc://")) else { return };
    match instance["hostname"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => drop(listing.addresses.insert(name.to_owned(), address.to_owned())),
        None => listing.nodes.push(address.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn instances_of_all_zones_are_comets_by_their_grpc_address() {
        let answer = json!({ "code": 0, "data": { "latest_timestamp": 1, "instances": {
            "sh001": [
                { "hostname": "comet-1", "addrs": ["http://10.0.0.1:3111", "grpc://10.0.0.1:3109"], "status": 1 },
                { "hostname": "odd", "addrs": ["http://10.0.0.3:1"] },
                { "hostname": "none", "addrs": null },
            ],
            "sh002": [{ "hostname": "comet-2", "addrs": ["grpc://10.0.0.2:3109"] }],
        } } });
        let found = listing(&answer).expect("a listing");
        let expected = [("comet-1", "grpc://10.0.0.1:3109"), ("comet-2", "grpc://10.0.0.2:3109")];
        let expected = expected.map(|(name, address)| (name.to_owned(), address.to_owned())).into();
        assert_eq!(found, CometListing { nodes: Vec::new(), addresses: expected });
    }

    #[test]
    fn a_refusal_is_an_error_and_nothing_is_nothing() {
        let refused = listing(&json!({ "code": -404, "message": "-404" })).expect_err("refused");
        assert!(refused.to_string().contains("-404"), "{refused}");
        assert_eq!(listing(&json!({ "code": 0, "data": null })), Ok(CometListing::default()));
    }
}
