//! Hot swap by files, with the ways in which people and machines change files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::swaps::write_variant;
use super::*;
use crate::artifact::PluginSource;
use crate::policy::{Generation, PoliciesConfig, PolicySources, expand, watch};

/// Policies that follow a plugin directory.
struct WatchedPolicies {
    policies: Arc<Policies>,
    folder: tempfile::TempDir,
    shutdown: CancellationToken,
    watcher: tokio::task::JoinSet<()>,
    _engine: Engine,
}

impl WatchedPolicies {
    /// With one plugin, `p.wasm`; files are read without an event every `rescan_interval`.
    async fn start(rescan_interval: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_variant(&folder.path().join("p.wasm"), 0);
        Self::in_folder(folder, rescan_interval).await
    }

    async fn in_folder(folder: tempfile::TempDir, rescan_interval: Duration) -> Self {
        Self::with_debounce(folder, PoliciesConfig::default().debounce, rescan_interval).await
    }

    async fn with_debounce(folder: tempfile::TempDir, debounce: Duration, rescan_interval: Duration) -> Self {
        let directory = folder.path().to_path_buf();
        let config = PoliciesConfig { directory: Some(directory.clone()), ..Default::default() };
        let files = move || {
            let wanted = expand(&[], &config)?;
            let mut paths: Vec<PathBuf> =
                wanted.iter().filter_map(|plugin| plugin.path.file()).map(Path::to_owned).collect();
            paths.push(directory.clone());
            Ok((wanted, paths))
        };
        let engine = Engine::new();
        let policies = engine.policies(&files().unwrap().0);
        let (shutdown, mut watcher) = (CancellationToken::new(), tokio::task::JoinSet::new());
        let sources =
            PolicySources { files: Box::new(files), debounce, rescan_interval, reload: Arc::default() };
        watcher.spawn(watch(Arc::clone(&policies), sources, shutdown.clone()));
        Self { policies, folder, shutdown, watcher, _engine: engine }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn reaches(&self, generation: u64) {
        let mut changes = self.policies.subscribe();
        let reached = changes.wait_for(|now| *now >= Generation(generation));
        let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
        let status = self.policies.status();
        assert_eq!(*reached.unwrap_or_else(|_| panic!("{status:#?}")).unwrap(), Generation(generation));
    }

    /// Renames a new version of `p.wasm` until that is noticed, as generation 2: the watcher has started.
    async fn is_watching(&self) {
        let mut changes = self.policies.subscribe();
        let noticed = async {
            loop {
                write_variant(&self.path("p.new"), 1);
                std::fs::rename(self.path("p.new"), self.path("p.wasm")).unwrap();
                let noticed = changes.wait_for(|now| *now == Generation(2));
                if tokio::time::timeout(Duration::from_millis(200), noticed).await.is_ok() {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), noticed).await.expect("in time");
    }

    async fn refuses(&self) -> Vec<String> {
        for _ in 0..1000 {
            if let Some(refusal) = self.policies.status().last_refusal {
                return refusal.errors;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nothing was refused");
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.watcher.join_next().await.unwrap().unwrap();
    }
}

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_written_renamed_added_and_removed_are_seen() {
    let watched = WatchedPolicies::start(NEVER).await;
    write_variant(&watched.path("p.wasm"), 1);
    watched.reaches(2).await;

    write_variant(&watched.path("p.new"), 2);
    std::fs::rename(watched.path("p.new"), watched.path("p.wasm")).unwrap();
    watched.reaches(3).await;

    write_variant(&watched.path("q.wasm"), 3);
    watched.reaches(4).await;
    assert_eq!(watched.policies.current().versions().len(), 2);

    std::fs::remove_file(watched.path("q.wasm")).unwrap();
    watched.reaches(5).await;
    assert_eq!(watched.policies.current().versions().len(), 1);
    watched.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_file_does_not_wait_for_the_debounce_time() {
    let folder = tempfile::tempdir().unwrap();
    write_variant(&folder.path().join("p.wasm"), 0);
    let watched = WatchedPolicies::with_debounce(folder, NEVER, NEVER).await;
    watched.is_watching().await;
    let rename = |to: &str| std::fs::rename(watched.path("p.new"), watched.path(to)).unwrap();
    for (number, name) in [(2, "p.wasm"), (3, "p.wasm"), (4, "q.wasm")] {
        write_variant(&watched.path("p.new"), number);
        rename(name);
        watched.reaches(u64::from(number) + 1).await;
    }
    // A file that is refused may be the first of several: nothing is reported before the debounce time.
    std::fs::write(watched.path("p.new"), b"its other half follows").unwrap();
    rename("p.wasm");
    write_variant(&watched.path("p.new"), 5);
    rename("p.wasm");
    watched.reaches(6).await;
    assert!(watched.policies.status().last_refusal.is_none());
    watched.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_written_in_place_waits_for_the_debounce_time() {
    let folder = tempfile::tempdir().unwrap();
    write_variant(&folder.path().join("p.wasm"), 0);
    let debounce = Duration::from_secs(1);
    let watched = WatchedPolicies::with_debounce(folder, debounce, NEVER).await;
    let begun = std::time::Instant::now();
    write_variant(&watched.path("p.wasm"), 1);
    watched.reaches(2).await;
    assert!(begun.elapsed() >= debounce / 2, "its size and time must not change for that long");
    watched.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_is_refused_and_mended() {
    let watched = WatchedPolicies::start(NEVER).await;
    let whole = std::fs::read(watched.path("p.wasm")).unwrap();
    std::fs::write(watched.path("p.wasm"), &whole[..whole.len() / 2]).unwrap();
    let errors = watched.refuses().await;
    assert!(
        errors[0].contains("is the file complete?") || errors[0].contains("without a description"),
        "{errors:?}"
    );
    assert_eq!(watched.policies.current().generation(), Generation(1));

    write_variant(&watched.path("p.wasm"), 1);
    watched.reaches(2).await;
    assert!(watched.policies.status().last_refusal.is_none());
    watched.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switched_symlink_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let version = |name: &str, number| {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        write_variant(&folder.path().join(name).join("p.wasm"), number);
    };
    version("..1", 1);
    version("..2", 2);
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, folder.path().join(at)).unwrap();
    link("..1", "..data");
    link("..data/p.wasm", "p.wasm");
    let watched = WatchedPolicies::with_debounce(folder, NEVER, NEVER).await;
    // Like Kubernetes: a new link, renamed over the old one. Until the watcher has started.
    let mut changes = watched.policies.subscribe();
    while *changes.borrow_and_update() == Generation(1) {
        std::os::unix::fs::symlink("..2", watched.path("..tmp")).unwrap();
        std::fs::rename(watched.path("..tmp"), watched.path("..data")).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
    }
    watched.reaches(2).await;
    watched.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rescan_finds_changes_without_events() {
    let watched = WatchedPolicies::start(Duration::from_millis(200)).await;
    let elsewhere = tempfile::tempdir().unwrap();
    replace_directory(watched.folder.path(), elsewhere.path());
    watched.reaches(2).await;
    // Away and back in one step each: an empty directory would be a set without plugins.
    std::fs::rename(watched.folder.path(), elsewhere.path().join("away")).unwrap();
    let errors = watched.refuses().await;
    assert!(errors[0].contains("cannot be read"), "{errors:?}");
    std::fs::rename(elsewhere.path().join("away"), watched.folder.path()).unwrap();
    while watched.policies.status().last_refusal.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(watched.policies.current().generation(), Generation(2), "nothing has changed");
    watched.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_a_retry_can_mend_is_fetched_again() {
    let wrong = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    let down = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for (answer, problem, is_fetched_again) in [(wrong, "something else", false), (down, "503", true)] {
        let (mut tasks, fetches, rescans) = (JoinSet::new(), Arc::<AtomicUsize>::default(), Arc::default());
        let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let path = format!("oci://{}/team/p@sha256:{}", registry.local_addr().unwrap(), "0".repeat(64));
        let path: PluginSource = path.parse().unwrap();
        tasks.spawn(answer_all(registry, answer, Arc::clone(&fetches)));

        let engine = Engine::new();
        let policies = engine.policies(&[]);
        let rescanned: Arc<AtomicUsize> = Arc::clone(&rescans);
        let files = move || {
            rescanned.fetch_add(1, Relaxed);
            Ok((vec![PluginConfig { path: path.clone(), ..PluginConfig::new("p", "") }], vec![]))
        };
        let often = Duration::from_millis(10);
        let sources = PolicySources {
            files: Box::new(files),
            debounce: often,
            rescan_interval: often,
            reload: Arc::default(),
        };
        tasks.spawn(watch(Arc::clone(&policies), sources, CancellationToken::new()));

        until(|| policies.status().last_refusal.is_some()).await;
        let errors = policies.status().last_refusal.unwrap().errors;
        assert!(errors[0].contains(problem), "{errors:?}");
        let before = rescans.load(Relaxed);
        until(|| rescans.load(Relaxed) >= before + 20).await;
        if is_fetched_again {
            until(|| fetches.load(Relaxed) > 1).await;
        } else {
            assert_eq!(fetches.load(Relaxed), 1, "a digest always names the same content");
        }
        tasks.shutdown().await;
    }
}

async fn answer_all(registry: TcpListener, answer: &str, fetches: Arc<AtomicUsize>) {
    loop {
        let (mut client, _) = registry.accept().await.unwrap();
        fetches.fetch_add(1, Relaxed);
        let _ = client.read(&mut [0; 4096]).await;
        let _ = client.write_all(answer.as_bytes()).await;
    }
}

async fn until(is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("in time");
}

/// Replaces the directory by a new one: the old one's watch is lost.
fn replace_directory(directory: &Path, elsewhere: &Path) {
    let aside = elsewhere.join("new");
    std::fs::create_dir(&aside).unwrap();
    write_variant(&aside.join("p.wasm"), 1);
    // Two steps: between them the directory cannot be read, which changes nothing.
    std::fs::rename(directory, elsewhere.join("moved")).unwrap();
    std::fs::rename(aside, directory).unwrap();
}
