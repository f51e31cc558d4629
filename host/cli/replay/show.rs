//! Formats the findings of a replay as tables or JSON.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cli::replay::judge::Kind;
use crate::cli::replay::tally::{Decisions, Example, Tally};
use crate::telemetry::escape;
use crate::time::format_ms;

/// How many reasons of one kind a table shows; JSON has all that were counted.
const ROWS: usize = 20;

/// All findings as one object.
pub(super) fn json(tally: &Tally, is_whole: bool) -> Value {
    json!({
        "topic": tally.topic,
        "complete": is_whole,
        "records": tally.records,
        "left_out": tally.unseen,
        "plugin": tally.version.to_string(),
        "decisions": decisions(&tally.candidate),
        "against": tally.against_version.as_ref().map(|version| json!({
            "plugin": version.to_string(),
            "decisions": decisions(&tally.against),
        })),
        "changed": tally.changed,
        "changes": tally.changes,
        "examples": tally.examples,
    })
}

fn decisions(decisions: &Decisions) -> Value {
    let count = |(kind, reasons): (&Kind, &std::collections::BTreeMap<String, u64>)| {
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
pub(super) fn lines(tally: &Tally) -> Vec<String> {
    let mut lines = vec![format!("{} records of {}", tally.records, tally.topic)];
    lines.extend(tally.unseen.iter().map(|(what, count)| format!("{count} of them are {what}")));
    lines.push(String::new());
    table(tally, &mut lines);
    if tally.against_version.is_some() {
        lines.push(String::new());
        changes(tally, &mut lines);
    }
    lines
}

fn table(tally: &Tally, lines: &mut Vec<String>) {
    let against = tally.against_version.as_ref().map(ToString::to_string);
    let mut rows = vec![[
        "DECISION".to_owned(),
        against.clone().unwrap_or_default(),
        tally.version.to_string(),
        "REASON".to_owned(),
    ]];
    for kind in [Kind::Passed, Kind::Amended, Kind::Dropped, Kind::DeadLettered, Kind::Failed] {
        let reasons = by_weight(tally, kind);
        for why in reasons.iter().take(ROWS) {
            let (before, after) = (tally.against.of(kind, why), tally.candidate.of(kind, why));
            rows.push([kind.as_str().into(), before.to_string(), after.to_string(), printable(why)]);
        }
        if reasons.len() > ROWS {
            let sum =
                |of: &Decisions| reasons[ROWS..].iter().map(|why| of.of(kind, why)).sum::<u64>().to_string();
            let rest = format!("(another {})", reasons.len() - ROWS);
            rows.push([kind.as_str().into(), sum(&tally.against), sum(&tally.candidate), rest]);
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
fn by_weight(tally: &Tally, kind: Kind) -> Vec<String> {
    let both = [&tally.against, &tally.candidate];
    let reasons: BTreeSet<&String> =
        both.iter().filter_map(|of| of.0.get(&kind)).flat_map(|r| r.keys()).collect();
    let mut reasons: Vec<String> = reasons.into_iter().cloned().collect();
    reasons.sort_by_key(|why| std::cmp::Reverse(both.iter().map(|of| of.of(kind, why)).sum::<u64>()));
    reasons
}

fn changes(tally: &Tally, lines: &mut Vec<String>) {
    if tally.changed == 0 {
        lines.push("no decision changes".to_owned());
        return;
    }
    let noun = if tally.changed == 1 { "decision changes" } else { "decisions change" };
    lines.push(format!("{} {noun}:", tally.changed));
    lines.extend(tally.changes.iter().map(|(change, count)| format!("{count:>9}  {change}")));
    if !tally.examples.is_empty() {
        lines.push(String::new());
        lines.push(format!("the first {} of them:", tally.examples.len()));
        lines.extend(tally.examples.iter().map(example));
    }
}

fn example(example: &Example) -> String {
    let Example { id, timestamp_ms, before, after, body, .. } = example;
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
