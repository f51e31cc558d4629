//! The two text formats of `/metrics`, and which of them a client wants.
//!
//! Prometheus asks for OpenMetrics. Clients that do not name it get the older text format, version 0.0.4,
//! which everything reads. Both are made from one rendering: they differ in the names of counters (which the
//! older format gives in full in `# HELP` and `# TYPE`), in types that only OpenMetrics has, and in its
//! last line.

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

/// The header says how much each type is wanted, in thousandths (RFC 9110, 12.4.2).
const FULL_WEIGHT: u16 = 1000;

impl Exposition {
    /// The format for a client that sent this `Accept` header, empty if it sent none. OpenMetrics must be
    /// named, and wanted no less than plain text: a wildcard may come from anything.
    pub fn negotiate(accept: &str) -> Self {
        let ranges = || accept.split(',').filter_map(MediaRange::parse);
        let weight = |kind: &str, versions: &[&str]| {
            let wanted = ranges().filter(|range| {
                range.media_type.eq_ignore_ascii_case(kind)
                    && range.version.is_none_or(|version| versions.contains(&version))
            });
            wanted.map(|range| range.weight).max()
        };
        let open = weight("application/openmetrics-text", &["1.0.0", "0.0.1"]).unwrap_or(0);
        let text = weight("text/plain", &["0.0.4"]).unwrap_or(0);
        if open > 0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// One element of an `Accept` header.
struct MediaRange<'a> {
    media_type: &'a str,
    version: Option<&'a str>,
    weight: u16,
}

impl<'a> MediaRange<'a> {
    /// `None` if it is malformed, which is then not wanted.
    fn parse(element: &'a str) -> Option<Self> {
        let mut parts = element.split(';').map(str::trim);
        let media_type = parts.next().filter(|name| !name.is_empty())?;
        let mut range = Self { media_type, version: None, weight: FULL_WEIGHT };
        for part in parts {
            let (name, value) = part.split_once('=')?;
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if name.eq_ignore_ascii_case("q") {
                range.weight = weight(value)?;
            } else if name.eq_ignore_ascii_case("version") {
                range.version = Some(value);
            }
        }
        Some(range)
    }
}

/// A weight from 0 to 1 with at most three decimals, in thousandths.
fn weight(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(FULL_WEIGHT),
        _ => None,
    }
}

/// OpenMetrics as text of version 0.0.4. The metrics have no exemplars, which that format lacks.
pub fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + openmetrics.len() / 32);
    // The line of help comes before that of the type, and its name depends on the type.
    let mut help = None;
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), said) => help = Some((name, said.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "stateset" => ("", "gauge"),
                    "unknown" => ("", "untyped"),
                    both => ("", both),
                };
                if let Some((_, said)) = help.take().filter(|(described, _)| *described == name) {
                    text.extend(["# HELP ", name, suffix, " ", said, "\n"]);
                }
                text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            (Some("#"), ..) => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn openmetrics_must_be_asked_for() {
        let of = |accept: &str| Exposition::negotiate(accept);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for wanted in [
            prometheus,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"; escaping=allow-utf-8; Q=0.001",
            "text/plain;q=0.5, application/openmetrics-text;q=0.5",
            "text/plain;version=1.0.0, application/openmetrics-text;q=0.1",
        ] {
            assert_eq!(of(wanted), Exposition::OpenMetrics, "{wanted}");
        }
        for other in [
            "",
            "*/*",
            "text/plain",
            "application/*;q=0.9, text/html",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.000, */*",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0.4, text/plain;q=0.5",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=0.1234",
            "application/openmetrics-text;q",
            "application/openmetrics-text;q=-1",
            ";;,,=",
        ] {
            assert_eq!(of(other), Exposition::Text, "{other}");
        }
    }

    #[test]
    fn the_older_format_names_counters_in_full() {
        let mut registry = Registry::default();
        let calls = Family::<Vec<(String, String)>, Counter>::default();
        let odd = "one\nline \"of\" # HELP a\\b".to_owned();
        calls.get_or_create(&vec![("of".to_owned(), odd)]).inc();
        registry.register("calls", "Calls of plugins", calls);
        registry.register_with_unit("wait", "Time", Unit::Seconds, Gauge::<i64>::default());
        registry.register("build", "Build", Info::new([("version", "1")]));
        let mut open = String::new();
        prometheus_client::encoding::text::encode(&mut open, &registry).expect("a string takes it");
        let expected = [
            "# HELP calls_total Calls of plugins.",
            "# TYPE calls_total counter",
            r#"calls_total{of="one\nline \"of\" # HELP a\\b"} 1"#,
            "# HELP wait_seconds Time.",
            "# TYPE wait_seconds gauge",
            "wait_seconds 0",
            "# HELP build_info Build.",
            "# TYPE build_info gauge",
            "build_info{version=\"1\"} 1",
        ];
        assert_eq!(to_text(&open).lines().collect::<Vec<_>>(), expected, "{open}");
    }
}
