//! The metrics and labels that a PromQL expression names.
//!
//! A tokenizer and the few rules that tell a metric's name from everything else: it is not followed by `(`, it is
//! no keyword, and it is not among the labels of `by`, `on` and their like. Prometheus itself checks the grammar.

use std::collections::BTreeSet;

/// What an expression needs to exist.
#[derive(Debug, Default, PartialEq)]
pub struct Needs {
    /// Each metric with the labels of its matchers.
    pub selectors: Vec<(String, BTreeSet<String>)>,
    /// The labels by which it groups and joins.
    pub grouping: BTreeSet<String>,
}

const OPERATORS: [&str; 8] = ["and", "or", "unless", "bool", "offset", "atan2", "start", "end"];
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Reads an expression.
///
/// # Panics
/// If it ends within a string or a list.
pub fn needs(expression: &str) -> Needs {
    let tokens = tokens(expression);
    let mut needs = Needs::default();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        let next = tokens.get(at).map(String::as_str);
        if token == "[" {
            at += tokens[at..].iter().position(|token| token == "]").expect("a range ends") + 1;
        } else if GROUPING.contains(&token.as_str()) && next == Some("(") {
            let (labels, end) = list(&tokens, at + 1, ")");
            needs.grouping.extend(labels);
            at = end;
        } else if is_name(token) && !next.is_some_and(is_of_function) && !OPERATORS.contains(&token.as_str())
        {
            let mut labels = BTreeSet::new();
            if next == Some("{") {
                let end;
                (labels, end) = list(&tokens, at + 1, "}");
                at = end;
            }
            needs.selectors.push((token.clone(), labels));
        }
    }
    needs
}

/// The names up to a closing token, and the place after it.
fn list(tokens: &[String], from: usize, close: &str) -> (BTreeSet<String>, usize) {
    let length = tokens[from..].iter().position(|token| token == close).expect("a list ends");
    let names = tokens[from..from + length].iter().filter(|token| is_name(token)).cloned().collect();
    (names, from + length + 1)
}

/// Whether what comes before is a function or an aggregation: `sum(…)`, `sum by (…)`.
fn is_of_function(next: &str) -> bool {
    next == "(" || GROUPING.contains(&next)
}

fn is_name(token: &str) -> bool {
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    token.starts_with(starts) && token.chars().all(|c| starts(c) || c.is_ascii_digit())
}

fn tokens(expression: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' => {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let ends = c == first && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.expect("a string ends") + 2
            }
            // A number may have a unit or an exponent.
            c if c.is_ascii_alphanumeric() || c == '_' || c == ':' => {
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_:.".contains(c))).unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}

#[test]
fn metrics_and_labels_are_told_from_the_rest() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let found = needs(
        r#"sum by (job, le) (rate(a_bucket{b="x} \" y{", c=~'z'}[5m] offset 1h)) / on (job) group_left (d)
           count(e:f) > bool 1e3 and absent(g) unless histogram_quantile(0.9, h{}) * -inf"#,
    );
    let selectors = [
        ("a_bucket", names(&["b", "c"])),
        ("e:f", names(&[])),
        ("g", names(&[])),
        ("h", names(&[])),
        ("inf", names(&[])),
    ];
    assert_eq!(found.selectors, selectors.map(|(name, labels)| (name.to_owned(), labels)).to_vec());
    assert_eq!(found.grouping, names(&["d", "job", "le"]));
}
