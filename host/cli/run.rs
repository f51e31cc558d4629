//! `halley run`: the daemon.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::Admin;
use crate::api::Api;
use crate::blocking::run_blocking;
use crate::cli::service_manager::ServiceManager;
use crate::cli::signals::{SIGNAL_DEBOUNCE, Signals};
use crate::cli::{ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, runtime, usage};
use crate::config::listen::port_of;
use crate::config::{Config, ConfigError, ConfigErrors, ConfigReport};
use crate::consumer::StopOutcome;
use crate::gateway::Gateway;
use crate::policy::PolicySources;
use crate::wasm;
use crate::{panics, sandbox, telemetry};

/// How long to wait for an abandoned compilation.
const LAST_COMPILATION: Duration = Duration::from_secs(1);
/// Grace period of the admin listener.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Grace period of the log.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Arguments of `halley run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Log level; overrides `[log] level`.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Log format; overrides `[log] format`.
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<telemetry::Format>,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let file = args.config.file();
    let ConfigReport { mut config, mistakes, warnings, .. } = Config::inspect(file.as_deref());
    if !mistakes.is_empty() {
        return usage(&format!(
            "invalid configuration ({}); `halley check` also checks the plugins\n{}",
            args.config.source(),
            ConfigErrors(mistakes)
        ));
    }
    if let Some(exposed) = config.admin.exposed_token() {
        return usage(&exposed);
    }
    // Before the command-line overrides, because changes are compared with the file.
    let sources = config.sources(file);
    config.log.level = args.log_level.unwrap_or(config.log.level);
    config.log.format = args.log_format.unwrap_or(config.log.format);
    // Before any thread exists: a thread restricts only itself. A directory that cannot be created is
    // reported later, where it is used.
    let _ = config.policies.make_state_folder();
    let sandbox = sandbox::enter(config.process.sandbox, &allowed(&config))?;
    telemetry::init(&config.log)?;
    panics::install_hook();
    raise_limit_on_files();
    info!(
        revision = env!("HALLEY_REVISION"),
        config = args.config.source(),
        %sandbox,
        "halley {}",
        env!("CARGO_PKG_VERSION")
    );
    for ConfigError { place, text, .. } in &warnings {
        warn!(place, "configuration: {text}");
    }
    for problem in config.admin.token_problems() {
        warn!("configuration: {problem}");
    }
    let runtime = runtime()?;
    let code = runtime.block_on(serve(config, sources));
    wasm::end_compilations();
    wasm::await_compilations(LAST_COMPILATION);
    // A compilation, or a read from a network file system, may still run on its own thread. What had
    // to finish has finished; the process does not wait for it.
    runtime.shutdown_background();
    telemetry::flush(LAST_LINES);
    code
}

/// Below this limit, a gateway with some comets fails soon.
const FEW: u64 = 1024;

/// Raises the soft limit on open files and sockets to the hard one. Shells and service managers start
/// programs with a soft limit of 1,024 for programs that use `select(2)`, which this one does not. Every
/// comet and every broker needs a socket.
fn raise_limit_on_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match raised {
        Ok(()) => info!(limit, was = current.unwrap_or(u64::MAX), "open file limit"),
        Err(error) => warn!(limit, %error, "cannot raise the limit on open files"),
    }
    if limit < FEW {
        warn!(
            limit,
            "the limit on open files is low: each comet, broker and admin client needs one; raise the hard limit (`ulimit -Hn`, `LimitNOFILE=`)"
        );
    }
}

/// What the restricted process may do. Creates the folders that the gateway would create itself, since
/// only existing paths can be allowed.
fn allowed(config: &Config) -> sandbox::SandboxRules {
    let mut writable: Vec<_> = config.policies.state_dir.iter().cloned().collect();
    writable.extend(config.admin.socket_folders());
    let ports = config.listeners().into_iter().filter_map(|(_, listen)| port_of(listen)).collect();
    sandbox::SandboxRules { writable, ports }
}

async fn serve(config: Config, sources: PolicySources) -> anyhow::Result<u8> {
    let mut signals = Signals::new(Arc::clone(&sources.reload))?;
    let mut registry = Registry::default();
    let admin = Admin::bind(&config.admin, &mut registry).await?;
    let api = Api::bind(&config.api, &mut registry, admin.certificate_expiry()).await?;
    let reading = {
        let config = config.clone();
        // The plugin directory may be on a network file system.
        run_blocking("reading the plugin directory", move || config.plugins())
    };
    let starting = async {
        let plugins = reading.await??;
        Gateway::start(&config, plugins, sources, registry).await
    };
    let gateway = tokio::select! {
        gateway = starting => gateway?,
        // Compiling plugins may take a while; nothing is in flight yet.
        () = signals.next() => {
            info!("stopped before the start was complete");
            return Ok(EXIT_SUCCESS);
        }
    };

    let shutdown = CancellationToken::new();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(admin.serve(gateway.handle(), shutdown.clone()));
    if let Some(api) = api {
        serving.spawn(api.serve(gateway.handle(), shutdown.clone()));
    }
    let service_manager = ServiceManager::start(gateway.handle());
    tokio::select! {
        () = signals.next() => {}
        () = gateway.until_fenced() => {}
    }
    service_manager.stopping(config.delivery.shutdown_grace);
    let since = Instant::now();
    // The active policies decide until the end.
    wasm::end_compilations();
    let stopped = tokio::select! {
        stopped = gateway.stop(config.delivery.shutdown_grace) => stopped,
        () = signals.next_after(since + SIGNAL_DEBOUNCE) => {
            warn!("second signal: exiting immediately; records in flight will be redelivered");
            telemetry::flush(LAST_LINES);
            std::process::exit(i32::from(EXIT_FAILURE));
        }
    };
    shutdown.cancel();
    // Requests that take longer are aborted.
    let served = async { while serving.join_next().await.is_some() {} };
    drop(tokio::time::timeout(LAST_ANSWERS, served).await);
    Ok(if stopped == StopOutcome::Drained { EXIT_SUCCESS } else { EXIT_FAILURE })
}
