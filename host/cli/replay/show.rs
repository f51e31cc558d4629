//! Formats the findings of a replay as tables or JSON.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cli::replay::findings::{ChangedMessage, Decisions, Findings};
use crate::cli::replay::replayed_plugin::DecisionKind;
use crate::telemetry::escape;
use crate::time::format_ms;

/// How many reasons of one kind a table shows; JSON has all that were counted.
const ROWS: usize = 20;

/// All findings as one object.
pub(super) fn json(findings: &Findings, is_whole: bool) -> Value {
    let left_out = findings.skipped.iter().map(|(what, count)| (what.to_string(), json!(count)));
    json!({
        "topic": findings.topic,
        "complete": is_whole,
        "records": findings.records,
        "left_out": left_out.collect::<serde_json::Map<_, _>>(),
        "plugin": findings.version.to_string(),
        "decisions": decisions(&findings.candidate),
        "against": findings.against_version.as_ref().map(|version| json!({
            "plugin": version.to_string(),
            "decisions": decisions(&findings.against),
        })),
        "changed": findings.changed,
        "changes": findings.changes,
        "examples": findings.examples,
    })
}

fn decisions(decisions: &Decisions) -> Value {
    let count = |(kind, reasons): (&DecisionKind, &std::collections::BTreeMap<String, u64>)| {
        let total: u64 = reasons.values().sum();
        let reasons: serde_json::Map<_, _> = reasons
            .iter()
            .filter(|(why, _)| !why.is_empty())
            .map(|(why, n)| (why.clone(), json!(n)))
            .collect();
        (kind.as_str().to_owned(), json!({ "count": total, "reasons": reasons }))
    };
    Value::Object(decisions.0.iter().map(count).collect())
}

/// All findings as tables.
pub(super) fn lines(findings: &Findings) -> Vec<String> {
    let mut lines = vec![format!("{} records of {}", findings.records, findings.topic)];
    lines.extend(findings.skipped.iter().map(|(what, count)| format!("{count} of them are {what}")));
    lines.push(String::new());
    table(findings, &mut lines);
    if findings.against_version.is_some() {
        lines.push(String::new());
        changes(findings, &mut lines);
    }
    lines
}

fn table(findings: &Findings, lines: &mut Vec<String>) {
    let against = findings.against_version.as_ref().map(ToString::to_string);
    let mut rows = vec![[
        "DECISION".to_owned(),
        against.clone().unwrap_or_default(),
        findings.version.to_string(),
        "REASON".to_owned(),
    ]];
    for kind in [
        DecisionKind::Passed,
        DecisionKind::Amended,
        DecisionKind::Dropped,
        DecisionKind::DeadLettered,
        DecisionKind::Failed,
    ] {
        let reasons = by_weight(findings, kind);
        for why in reasons.iter().take(ROWS) {
            let (before, after) = (findings.against.of(kind, why), findings.candidate.of(kind, why));
            rows.push([kind.as_str().into(), before.to_string(), after.to_string(), printable(why)]);
        }
        if reasons.len() > ROWS {
            let sum =
                |of: &Decisions| reasons[ROWS..].iter().map(|why| of.of(kind, why)).sum::<u64>().to_string();
            let rest = format!("(another {})", reasons.len() - ROWS);
            rows.push([kind.as_str().into(), sum(&findings.against), sum(&findings.candidate), rest]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second, third) = (width(0), width(1), width(2));
    for [kind, before, after, why] in &rows {
        let before = if against.is_some() { format!("  {before:>second$}") } else { String::new() };
        lines.push(format!("{kind:first$}{before}  {after:>third$}  {why}").trim_end().to_owned());
    }
}

/// The reasons of both versions, the most frequent first.
fn by_weight(findings: &Findings, kind: DecisionKind) -> Vec<String> {
    let both = [&findings.against, &findings.candidate];
    let reasons: BTreeSet<&String> =
        both.iter().filter_map(|of| of.0.get(&kind)).flat_map(|r| r.keys()).collect();
    let mut reasons: Vec<String> = reasons.into_iter().cloned().collect();
    reasons.sort_by_key(|why| std::cmp::Reverse(both.iter().map(|of| of.of(kind, why)).sum::<u64>()));
    reasons
}

fn changes(findings: &Findings, lines: &mut Vec<String>) {
    if findings.changed == 0 {
        lines.push("no decision changes".to_owned());
        return;
    }
    let noun = if findings.changed == 1 { "decision changes" } else { "decisions change" };
    lines.push(format!("{} {noun}:", findings.changed));
    lines.extend(findings.changes.iter().map(|(change, count)| format!("{count:>9}  {change}")));
    if !findings.examples.is_empty() {
        lines.push(String::new());
        lines.push(format!("the first {} of them:", findings.examples.len()));
        lines.extend(findings.examples.iter().map(example));
    }
}

fn example(example: &ChangedMessage) -> String {
    let ChangedMessage { id, timestamp_ms, before, after, body, .. } = example;
    let when = timestamp_ms.and_then(format_ms).map(|when| format!("  {when}")).unwrap_or_default();
    let (before, after) = (printable(before), printable(after));
    format!("  {id}{when}  {before} -> {after}  \"{}\"", printable(body))
}

/// The text on one line, without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Overwrites the current line of the terminal.
pub(super) fn over_the_line(text: &str) {
    use std::io::Write as _;
    drop(write!(std::io::stderr(), "\r\x1b[2K{}", escape::line(text, escape::LONGEST)));
    drop(std::io::stderr().flush());
}
