//! Pages in two languages: the same sections, lists, tables and commands, and the same names in each section.

use std::collections::BTreeSet;
use std::path::Path;

use super::{deployed, read};
use crate::support::repository;

/// One section of a page.
#[derive(Debug, Default)]
struct Section {
    /// The heading, with its `#`.
    heading: String,
    /// Paragraphs, and lines that begin an item of a list, a row of a table.
    paragraphs: usize,
    items: usize,
    rows: usize,
    /// What is in backticks outside of blocks of code: metrics, keys, commands, options.
    names: BTreeSet<String>,
    /// The lines of all blocks of code, without comments.
    code: Vec<String>,
    /// Whether a block is a drawing rather than commands or configuration.
    has_drawing: bool,
}

/// The sections of a page.
fn sections(text: &str) -> Vec<Section> {
    let mut sections = vec![Section::default()];
    let (mut prose, mut in_code, mut in_paragraph) = (String::new(), false, false);
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if !in_code && line.starts_with('#') {
            sections.last_mut().expect("one").names = names(&prose);
            prose.clear();
            sections.push(Section { heading: line.to_owned(), ..Section::default() });
            in_paragraph = false;
            continue;
        }
        let section = sections.last_mut().expect("one");
        if in_code {
            section.has_drawing |= trimmed.contains('─') || trimmed.contains("->");
            // What is drawn or explained may be in the language of the page.
            let command = trimmed.split('#').next().unwrap_or_default().trim_end();
            section.code.push(if trimmed.is_ascii() { command.to_owned() } else { ascii_words(command) });
            continue;
        }
        let is_empty = trimmed.is_empty();
        section.paragraphs += usize::from(!is_empty && !in_paragraph);
        in_paragraph = !is_empty;
        let number = trimmed.trim_start_matches(|c: char| c.is_ascii_digit());
        section.items +=
            usize::from(trimmed.starts_with("- ") || number.starts_with(". ") && number != trimmed);
        section.rows += usize::from(trimmed.starts_with('|'));
        prose.push_str(line);
        prose.push('\n');
    }
    sections.last_mut().expect("one").names = names(&prose);
    sections
}

/// What is in backticks.
fn names(prose: &str) -> BTreeSet<String> {
    let spans = prose.split('`').skip(1).step_by(2);
    spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The words of a line that do not depend on the language.
fn ascii_words(line: &str) -> String {
    line.split_whitespace().filter(|word| word.is_ascii()).collect::<Vec<_>>().join(" ")
}

fn assert_twins(english: &Path, chinese: &Path) {
    let (english, chinese) = (sections(&read(english)), sections(&read(chinese)));
    for (one, other) in english.iter().zip(&chinese) {
        let level = |section: &Section| section.heading.chars().take_while(|c| *c == '#').count();
        let what = format!("`{}` and `{}`", one.heading, other.heading);
        assert_eq!(level(one), level(other), "the level of {what}");
        let missing = |a: &Section, b: &Section| a.names.difference(&b.names).cloned().collect::<Vec<_>>();
        let (only_english, only_chinese) = (missing(one, other), missing(other, one));
        assert!(
            only_english.is_empty() && only_chinese.is_empty(),
            "{what}: only in English {only_english:?}, only in Chinese {only_chinese:?}"
        );
        let shape = |section: &Section| (section.paragraphs, section.items, section.rows);
        assert_eq!(shape(one), shape(other), "paragraphs, items and rows of {what}");
        if !one.has_drawing {
            assert_eq!(one.code, other.code, "the commands of {what}");
        }
    }
    assert_eq!(english.len(), chinese.len(), "sections");
}

#[test]
fn both_languages_say_the_same() {
    for folder in ["", "examples/deploy/"] {
        let of = |name: &str| repository(&format!("{folder}{name}"));
        assert_twins(&of("README.md"), &of("README.zh-CN.md"));
    }
}

#[test]
fn differences_between_languages_are_found() {
    let page = "# A\n\nUse `x` and\n`--y z`.\n\n- one\n- two\n\n```sh\nrun  # this\n```\n## B\n| a |\n";
    let found = sections(page);
    assert_eq!(found.len(), 3);
    assert_eq!(found[1].names.iter().collect::<Vec<_>>(), ["--y z", "x"]);
    assert_eq!((found[1].paragraphs, found[1].items, found[2].rows), (2, 2, 1));
    assert_eq!(found[1].code, ["run"]);
}

#[test]
fn pages_name_what_exists_in_both_languages() {
    let headings = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| line.chars().take_while(|c| *c == '#').count())
            .collect::<Vec<_>>()
    };
    let blocks = |text: &str| text.split("```").skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let (english, chinese) = (read(&deployed("README.md")), read(&deployed("README.zh-CN.md")));
    assert_eq!(headings(&english), headings(&chinese), "the same sections in both languages");
    assert_eq!(blocks(&english), blocks(&chinese), "the same commands in both languages");
    for text in [&english, &chinese] {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let exists = file.is_empty() || file.starts_with("http") || deployed(file).exists();
            assert!(exists, "{link} is missing");
        }
    }
    let shown = blocks(&english).concat();
    for path in shown.split_whitespace().filter(|word| word.starts_with("examples/deploy/")) {
        assert!(repository(path).exists(), "{path} is missing");
    }
}
