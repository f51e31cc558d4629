//! Errors are types: a caller can tell them apart, and each has one text. No function of `host/` returns
//! a sentence as its error.

use std::collections::BTreeSet;

/// The signature of the contract (`wit/policy.wit`), as generated.
const GENERATED: (&str, &str) = ("host/wasm/host.rs", "Result<(), String>");

#[test]
fn no_error_is_a_sentence() {
    let mut sentences = BTreeSet::new();
    for (file, _, text) in super::sources() {
        let found = sentences_in(&text).into_iter();
        let found = found.filter(|found| (file.to_str().expect("UTF-8"), found.as_str()) != GENERATED);
        sentences.extend(found.map(|found| format!("{}: {found}", file.display())));
    }
    assert!(
        sentences.is_empty(),
        "make these errors types (STYLE: `thiserror`, or `anyhow` at edges):\n{sentences:#?}"
    );
}

#[test]
fn a_planted_sentence_is_found() {
    let planted = "fn a() -> Result<Vec<(u8, String)>, String>; type Err = String;\n// Result<(), String>\n\
                   fn b() -> Result<\n    HashMap<String, u8>,\n    String,\n>; fn c() -> Result<String, io::Error>;\n\
                   fn d(f: impl Fn() -> Result<(), &'static str>) -> io::Result<String>;";
    let expected = [
        "Result<Vec<(u8, String)>, String>",
        "Result<HashMap<String, u8>, String>",
        "Result<(), &'static str>",
        "type Err = String",
    ];
    assert_eq!(sentences_in(planted), expected);
}

/// Results whose error is text.
fn sentences_in(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join(" ");
    let results = code.match_indices("Result<").filter_map(|(at, name)| {
        let arguments = arguments(&code[at + name.len()..])?;
        let [_, error] = &arguments[..] else { return None };
        is_text(error).then(|| format!("Result<{}>", arguments.join(", ")))
    });
    let errors = code.match_indices("type Err = ").filter_map(|(at, name)| {
        let error = code[at + name.len()..].split(';').next()?;
        is_text(error).then(|| format!("{name}{error}"))
    });
    results.chain(errors).collect()
}

fn is_text(error: &str) -> bool {
    matches!(error, "String" | "&str" | "&'static str" | "Box<str>" | "Vec<u8>")
}

/// The generic arguments up to the closing bracket, each on one line.
fn arguments(text: &str) -> Option<Vec<String>> {
    let (mut depth, mut all, mut begin) = (0, Vec::new(), 0);
    for (at, c) in text.char_indices() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' if depth == 0 => {
                all.push(&text[begin..at]);
                let lines = all.iter().map(|one| one.split_whitespace().collect::<Vec<_>>().join(" "));
                return Some(lines.filter(|one| !one.is_empty()).collect());
            }
            // Of an arrow.
            '>' if text[..at].ends_with('-') => {}
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                all.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    None
}
