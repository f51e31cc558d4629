//! `halley plugin test`.

use std::path::PathBuf;

use anyhow::Context as _;
use similar::{ChangeTag, TextDiff};

use crate::cli::plugin::author::answer::PolicyAnswer;
use crate::cli::plugin::author::cases::{self, Case, Cases};
use crate::cli::plugin::author::expect::Expected;
use crate::cli::plugin::author::plugin_under_test::{PluginUnderTest, StartError, TestInstance};
use crate::cli::plugin::author::project::{CallLimits, EngineArgs, PolicyPath};
use crate::cli::{EXIT_FAILURE, EXIT_SUCCESS, OrUsage as _, fail, print, print_lines, usage};

/// Arguments of `halley plugin test`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    place: PolicyPath,
    #[command(flatten)]
    limits: CallLimits,
    #[command(flatten)]
    engine: EngineArgs,
    /// The file with the cases, TOML or JSON. Without it, cases.toml or cases.json next to the
    /// policy.
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
}

pub(in crate::cli::plugin) fn run(args: Args) -> anyhow::Result<u8> {
    let file = args.cases.clone().map_or_else(|| args.place.cases(), Ok).or_usage()?;
    let cases = cases::read(&file).or_usage()?;
    if cases.cases.is_empty() {
        return usage(&format!("{} has no cases; add a `[[case]]`", file.display()));
    }
    let engine = args.engine.config()?;
    let policy = args.place.policy()?;
    let checked = check(&cases, &mut PluginUnderTest::new(&policy, args.limits, engine)?);
    let code = checked.with_context(|| format!("{} has a mistake", file.display())).or_usage()?;
    if code == EXIT_SUCCESS {
        args.place.put_in_place(&policy)?;
    }
    Ok(code)
}

/// Runs all cases and prints what differs from the expectations.
pub(super) fn check(cases: &Cases, under_test: &mut PluginUnderTest) -> anyhow::Result<u8> {
    let nothing = serde_json::json!({});
    let mut failed = 0;
    for case in &cases.cases {
        let config = case.config.as_ref().or(cases.config.as_ref()).unwrap_or(&nothing);
        let differences = match under_test.with(config) {
            Err(StartError::Configuration(why)) => refused(case, &why),
            Err(why) => {
                fail(&format!("no case can run: {why}"));
                return Ok(EXIT_FAILURE);
            }
            Ok(instance) => case.ask(instance).with_context(|| format!("case `{}`", case.name))?,
        };
        failed += usize::from(!differences.is_empty());
        let verdict = if differences.is_empty() { "ok      " } else { "FAILED  " };
        print(&format!("{verdict}{}", case.name));
        print_lines(differences);
    }
    let whole = cases.cases.len();
    let deadline = under_test.limits().deadline;
    print(&format!("{} of {whole} cases passed, with a deadline of {deadline} per call", whole - failed));
    Ok(if failed == 0 { EXIT_SUCCESS } else { EXIT_FAILURE })
}

/// The policy refused its configuration.
fn refused(case: &Case, why: &str) -> Vec<String> {
    match &case.refused {
        Some(part) if why.contains(part.as_str()) => Vec::new(),
        Some(part) => differing("refused", &[format!("...{part}...")], &[why.to_owned()]),
        None => vec![format!("    the policy does not start: it {why}")],
    }
}

impl Case {
    /// The differences between the answers and the expectations.
    fn ask(&self, mut instance: TestInstance) -> anyhow::Result<Vec<String>> {
        if let Some(part) = &self.refused {
            let expected = [format!("...{part}...")];
            return Ok(differing("refused", &expected, &["the configuration is accepted".to_owned()]));
        }
        let mut differences = Mismatches::default();
        for (hook, cases) in [("filter", &self.filter), ("retention", &self.retention)] {
            for (at, case) in cases.iter().enumerate() {
                let got = instance.filter(case.message.clone())?;
                differences.compare(hook, at, &case.expect.expected(), &got);
            }
        }
        for (at, case) in self.offline.iter().enumerate() {
            differences.compare("offline", at, &case.expect.expected(), &instance.decide(case.question())?);
        }
        for (at, case) in self.grouping.iter().enumerate() {
            differences.compare("grouping", at, &case.expected(), &instance.regroup(&case.question())?);
        }
        Ok(differences.0)
    }
}

#[derive(Default)]
struct Mismatches(Vec<String>);

impl Mismatches {
    fn compare(&mut self, hook: &str, at: usize, expected: &Expected, got: &PolicyAnswer) {
        if !expected.is_met_by(got) {
            self.0.extend(differing(&format!("{hook} {}", at + 1), &expected.lines(), &got.lines()));
        }
    }
}

/// A diff by lines: `-` was expected, `+` is the answer.
fn differing(what: &str, expected: &[String], got: &[String]) -> Vec<String> {
    let (expected, got) = (expected.join("\n"), got.join("\n"));
    let mut lines = vec![format!("    {what}: - expected, + got")];
    for change in TextDiff::from_lines(&expected, &got).iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        lines.push(format!("      {sign} {}", change.value().trim_end_matches('\n')));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_both_sides_line_by_line() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let shown =
            differing("filter 2", &lines(&["body: \"a\"", "room: r"]), &lines(&["body: \"b\"", "room: r"]));
        assert_eq!(
            shown,
            [
                "    filter 2: - expected, + got",
                "      - body: \"a\"",
                "      + body: \"b\"",
                "        room: r"
            ]
        );
    }
}
