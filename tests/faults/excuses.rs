//! Expected duplicates, from a gateway's own log: on a busy machine, a call may time out, and a
//! member may lose its session. Both cause duplicates in any at-least-once gateway, and are not
//! failures of the hand-over under test.

use std::time::{Duration, Instant, SystemTime};

use humantime::parse_rfc3339;
use serde_json::Value;

use crate::support::gateway::RunningGateway;
use crate::support::history::Excuse;

/// The log level this needs: calls without an answer, and streams that broke, are logged at `debug`.
pub const LOG_LEVEL: &str = "warn,halley=info,halley::comets=debug";

/// How long before its line a session may have been lost, and other members may have started: the
/// session timeout of these worlds, plus a margin.
const BEFORE_LOST: Duration = Duration::from_secs(10);
/// How long before its line a drain may have timed out, or a commit may have failed.
const BEFORE_TOLD: Duration = Duration::from_secs(3);

/// The expected duplicates of this gateway.
pub fn excuses(gateway: &RunningGateway) -> Vec<Excuse> {
    gateway.log_lines().iter().filter_map(excuse).collect()
}

fn excuse(line: &Value) -> Option<Excuse> {
    let told = instant(line["timestamp"].as_str()?)?;
    let message = line["message"].as_str()?;
    let whole = |before| Some(Excuse { comet: None, from: told.checked_sub(before)?, until: told });
    match message {
        "a call failed" | "a stream ended" => {
            let comet = Some(line["comet"].as_str()?.to_owned());
            Some(Excuse { comet, from: told, until: told })
        }
        "partitions revoked" if line["unfinished"].as_u64()? > 0 => whole(BEFORE_TOLD),
        _ if message.starts_with("partitions lost") => whole(BEFORE_LOST),
        _ if message.starts_with("cannot commit") || message.starts_with("cannot store offsets;") => {
            whole(BEFORE_TOLD)
        }
        _ => None,
    }
}

fn instant(timestamp: &str) -> Option<Instant> {
    let ago = SystemTime::now().duration_since(parse_rfc3339(timestamp).ok()?).ok()?;
    Instant::now().checked_sub(ago)
}

#[test]
fn causes_of_duplicates_are_found_in_the_log() {
    let line = |message: &str, more: (&str, Value)| {
        let mut line = serde_json::json!({ "timestamp": "2026-01-01T00:00:00.000001Z", "message": message });
        line[more.0] = more.1;
        excuse(&line)
    };
    let call = line("a call failed", ("comet", "a:1".into())).expect("an excuse");
    assert!(call.comet.as_deref() == Some("a:1") && call.from == call.until);
    assert!(line("a stream ended", ("comet", "a:1".into())).is_some());
    assert!(line("partitions revoked", ("unfinished", 2.into())).is_some());
    assert!(line("partitions revoked", ("unfinished", 0.into())).is_none());
    assert!(
        line("partitions lost: this member missed its session timeout", ("partitions", "".into())).is_some()
    );
    assert!(line("partitions assigned", ("partitions", "".into())).is_none());
}
