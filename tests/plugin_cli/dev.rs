//! `halley plugin dev` with an editor and a running gateway.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{CliFixture, sha256};
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, eventually};

/// The running command and its output; killed on drop.
struct DevProcess {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl DevProcess {
    fn start(cli: &CliFixture, args: &[&str]) -> Self {
        let mut command = cli.command("live", args);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let said = Arc::<Mutex<String>>::default();
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let err = BufReader::new(child.stderr.take().expect("piped"));
        let keep = |said: &Arc<Mutex<String>>, line: String| {
            let mut said = said.lock();
            said.push_str(&line);
            said.push('\n');
        };
        let of_out = Arc::clone(&said);
        std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| keep(&of_out, line)));
        let of_err = Arc::clone(&said);
        std::thread::spawn(move || err.lines().map_while(Result::ok).for_each(|line| keep(&of_err, line)));
        Self { child, said }
    }

    /// Waits until it has printed this text this many times.
    async fn says(&self, text: &str, times: usize) {
        eventually(format!("`{text}`"), 2 * PATIENCE, async || {
            (self.said().matches(text).count() >= times).then_some(())
        })
        .await;
    }

    fn said(&self) -> String {
        self.said.lock().clone()
    }

    /// Sends Ctrl-C.
    fn interrupt(&mut self) -> Option<i32> {
        let kill = std::process::Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status();
        assert!(kill.is_ok_and(|status| status.success()));
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for DevProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_pushes_only_what_passes_its_cases() {
    let cli = CliFixture::new();
    cli.project("live", "filter");
    assert_eq!(cli.plugin_in("live", &["build"]).code, Some(0));
    // The gateway watches the path where the project puts its builds.
    let file = cli.path("live/dist/live.wasm");
    let topic = kafka().topic("dev", 1).await;
    let plugin = Plugin::new("live", &file)
        .set("deadline", quoted("5s"))
        .config(&serde_json::json!({ "words": ["spam"] }));
    let gateway = gateway(&topic).plugin(plugin).start().await;
    let in_force = async || {
        let status = gateway.get("/v1/plugins/live").await.json();
        status["active"]["hash"].as_str().unwrap_or_default().to_owned()
    };
    let first = in_force().await;

    let mut dev = DevProcess::start(&cli, &["dev", "--push", "--gateway", &gateway.operator()]);
    dev.says("2 of 2 cases passed", 1).await;
    dev.says("waiting for changes", 1).await;

    let source = cli.read("live/src/lib.rs");
    cli.write("live/src/lib.rs", &source.replace("contains {word}", "has {word}"));
    dev.says("+ drop: has spam", 1).await;
    dev.says("waiting for changes", 2).await;
    assert_eq!(in_force().await, first, "a build that fails its cases is not pushed");
    assert!(sha256(&file).starts_with(&first), "nor put in the watched path");

    cli.write("live/src/lib.rs", "fn broken( {");
    dev.says("does not build", 1).await;
    dev.says("waiting for changes", 3).await;
    assert_eq!(in_force().await, first, "a failed build is not pushed");

    cli.write("live/src/lib.rs", &source.replace("contains {word}", "has {word}"));
    let cases = cli.read("live/cases.toml");
    cli.write("live/cases.toml", &cases.replace("contains spam", "has spam"));
    dev.says("2 of 2 cases passed", 2).await;
    dev.says("generation ", 2).await;
    let now = in_force().await;
    assert_ne!(now, first);
    assert!(sha256(&file).starts_with(&now), "the build is active");

    assert_eq!(dev.interrupt(), Some(0));
}
