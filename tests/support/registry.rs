//! A registry for one story: Debian's `docker-registry` on a free port, gone with the test.

use std::path::PathBuf;
use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::child_process::ChildProcess;
use super::{PATIENCE, eventually, folder, free_port, print_uncaptured};

/// The login of a registry that requires one: name, password, and the hash in its configuration.
const USER: &str = "story";
const PASSWORD: &str = "a-password-of-a-story";
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuJTAWSr14Glv5icNEzHYGB1nIlTNssCu";

/// A running registry.
pub struct Registry {
    port: u16,
    asks: bool,
    server: ChildProcess,
}

impl Registry {
    /// Starts a registry; `None`, with a warning, if it is not installed. `asks`: requires a login.
    pub async fn start(story: &str, asks: bool) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            print_uncaptured(format_args!(
                "NOT PROVEN: `{story}` needs a registry; install the package docker-registry"
            ));
            return None;
        }
        let (folder, port) = (folder("registry"), free_port());
        let (data, config) = (folder.path().join("data"), folder.path().join("config.yml"));
        let users = folder.path().join("users");
        std::fs::write(&users, format!("{USER}:{PASSWORD_HASH}\n")).expect("a temporary file can be written");
        let auth = if asks {
            format!("auth:\n  htpasswd:\n    realm: story\n    path: {}\n", users.display())
        } else {
            String::new()
        };
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
            data.display()
        );
        std::fs::write(&config, text).expect("a temporary file can be written");
        let args = ["serve".to_owned(), config.display().to_string()];
        let server = ChildProcess::start("docker-registry", &args, folder).expect("docker-registry starts");
        let mut registry = Self { port, asks, server };
        registry.wait().await;
        Some(registry)
    }

    /// Kills it; what it has stays.
    pub fn stop(&mut self) {
        self.server.kill();
    }

    /// Starts it again, with what it had.
    pub async fn restart(&mut self) {
        self.server.restart().expect("docker-registry starts again");
        self.wait().await;
    }

    async fn wait(&mut self) {
        eventually("the registry", PATIENCE, async || {
            let answer = self.request(Method::GET, &self.url("/v2/")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success()).then_some(())
        })
        .await;
    }

    /// What `docker login` writes, as DOCKER_AUTH_CONFIG takes it.
    pub fn login(&self) -> String {
        let auths = json!({ format!("127.0.0.1:{}", self.port): { "username": USER, "password": PASSWORD } });
        json!({ "auths": auths }).to_string()
    }

    /// `host:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The manifest that a tag names.
    pub async fn manifest(&self, repository: &str, tag: &str) -> Value {
        let url = self.url(&format!("/v2/{repository}/manifests/{tag}"));
        let get =
            self.request(Method::GET, &url).header("accept", "application/vnd.oci.image.manifest.v1+json");
        get.send().await.expect("an answer").json().await.expect("JSON")
    }

    /// Who may ask it.
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The password, to look for it where it must not be.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// Pushes a plugin as an artifact of one layer, tagged `latest`; gives its `oci://` reference.
    pub async fn push(&self, repository: &str, plugin: &[u8], annotations: Value) -> String {
        let config = self.blob(repository, b"{}").await;
        let layer = self.blob(repository, plugin).await;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2 },
            "layers": [{ "mediaType": "application/wasm", "digest": layer, "size": plugin.len(), "annotations": annotations }],
        });
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        let url = self.url(&format!("/v2/{repository}/manifests/latest"));
        let digest = digest(&manifest);
        let put = self.request(Method::PUT, &url);
        let put = put.header("content-type", "application/vnd.oci.image.manifest.v1+json").body(manifest);
        assert_eq!(put.send().await.expect("an answer").status(), StatusCode::CREATED);
        format!("oci://127.0.0.1:{}/{repository}@{digest}", self.port)
    }

    /// The file in which it keeps a blob.
    pub fn blob_file(&self, bytes: &[u8]) -> PathBuf {
        let digest = digest(bytes);
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.server.folder().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    async fn blob(&self, repository: &str, bytes: &[u8]) -> String {
        let begin = self.request(Method::POST, &self.url(&format!("/v2/{repository}/blobs/uploads/")));
        let begun = begin.send().await.expect("an answer");
        let place = begun.headers()["location"].to_str().expect("a URL").to_owned();
        let digest = digest(bytes);
        let put = self.request(Method::PUT, &format!("{place}&digest={digest}")).body(bytes.to_vec());
        assert_eq!(put.send().await.expect("an answer").status(), StatusCode::CREATED);
        digest
    }

    fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.request(method, url);
        if self.asks { request.basic_auth(USER, Some(PASSWORD)) } else { request }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
