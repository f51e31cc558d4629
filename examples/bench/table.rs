//! The results: medians over the rounds, ratios, a table or JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::rows::{Figure, Figures, Goal, Line, Row, Unit};
use crate::world::{Version, World};

/// The figures of all rounds.
#[derive(Default)]
pub(crate) struct Results {
    /// By row, arm and binary.
    rounds: BTreeMap<(&'static str, usize, Version), Vec<Figures>>,
    failures: Vec<(&'static str, String)>,
}

impl Results {
    /// What an arm measured in a round.
    pub(crate) fn add(&mut self, row: &'static str, arm: usize, version: Version, figures: Figures) {
        self.rounds.entry((row, arm, version)).or_default().push(figures);
    }

    /// An arm did not finish.
    pub(crate) fn failed(&mut self, row: &'static str, why: String) {
        eprintln!("{row} failed: {why}");
        self.failures.push((row, why));
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }

    fn of(&self, row: &'static str, at: (usize, Figure)) -> Vec<f64> {
        self.of_version(row, at, Version::Now)
    }

    /// Of all arms and rounds.
    fn sum(&self, row: &'static str, figure: Figure) -> f64 {
        let rounds = self.rounds.iter().filter(|((name, ..), _)| *name == row);
        rounds.flat_map(|(_, rounds)| rounds).filter_map(|figures| figures.get(&figure)).sum()
    }

    fn of_version(&self, row: &'static str, at: (usize, Figure), version: Version) -> Vec<f64> {
        let (arm, figure) = at;
        let rounds = self.rounds.get(&(row, arm, version));
        rounds.into_iter().flatten().filter_map(|figures| figures.get(&figure).copied()).collect()
    }
}

/// The content of a line of the table.
struct Outcome {
    figure: Option<f64>,
    /// The figure of the binary that this one is compared with.
    before: Option<f64>,
    against: Option<f64>,
    ratio: Option<f64>,
    met: Option<bool>,
}

impl Outcome {
    fn of(row: &Row, line: &Line, results: &Results) -> Self {
        let figure = median(results.of(row.name, line.of));
        let before = median(results.of_version(row.name, line.of, Version::Before));
        let against = line.against.and_then(|(arm, figure, _)| median(results.of(row.name, (arm, figure))));
        // Nothing compared with nothing has no ratio.
        let ratio = figure.zip(against).map(|(figure, against)| figure / against).filter(|it| it.is_finite());
        let met = match line.goal {
            Goal::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Goal::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Goal::AtMost(_) | Goal::MemoryOfRecord => {
                figure.zip(line.goal.most()).map(|(figure, most)| figure <= most)
            }
            Goal::None => None,
        };
        Self { figure, before, against, ratio, met }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied()?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

/// Prints a table in Markdown.
pub(crate) fn print(rows: &[&Row], results: &Results, world: &World, rounds: usize) {
    let versions = [("", Version::Now), ("; before: ", Version::Before)];
    let gateways: String = versions
        .iter()
        .filter_map(|(name, version)| Some(format!("{name}{}", world.gateway(*version)?)))
        .collect();
    println!("\n{gateways}; {}; medians of {rounds} round(s).\n", machine());
    let has_before = world.gateway(Version::Before).is_some();
    let mut head = vec!["row", "what", "Halley", "before", "against", "ratio", "goal", "met"];
    let mut bars = vec!["---", "----", "-----:", "-----:", "------:", "----:", "---:", "---"];
    if !has_before {
        head.remove(BEFORE);
        bars.remove(BEFORE);
    }
    println!("| {} |\n|{}|", head.join(" | "), bars.join("|"));
    for row in rows {
        for line in row.lines {
            let mut cells = cells(row, line, &Outcome::of(row, line, results));
            if !has_before {
                cells.remove(BEFORE);
            }
            println!("| {} |", cells.join(" | "));
        }
    }
    println!();
    for row in rows {
        println!("- {}: {}", row.name, row.about);
    }
    notes(rows, results);
}

/// The position of the column for another binary.
const BEFORE: usize = 3;

/// The problems of the run.
fn notes(rows: &[&Row], results: &Results) {
    for (row, why) in &results.failures {
        println!("\n{row} FAILED: {why}");
    }
    for row in rows {
        let (again, skipped) = (results.sum(row.name, Figure::Again), results.sum(row.name, Figure::Skipped));
        if again + skipped > 0.0 {
            println!(
                "\n{}: rooms went back to messages that they had {again} times, and left some out {skipped} times",
                row.name
            );
        }
    }
}

fn cells(row: &Row, line: &Line, outcome: &Outcome) -> Vec<String> {
    let figure = outcome.figure.map_or_else(|| "failed".to_owned(), |figure| shown(figure, line.unit));
    let before = outcome.before.map(|before| shown(before, line.unit)).unwrap_or_default();
    let named = outcome.against.zip(line.against);
    let against = named.map(|(against, (_, _, name))| format!("{} ({name})", shown(against, line.unit)));
    let ratio = outcome.ratio.map(|ratio| format!("{ratio:.2}x")).unwrap_or_default();
    let met = outcome.met.map_or("", |met| if met { "yes" } else { "no" });
    let cells =
        [row.name, line.what, &figure, &before, &against.unwrap_or_default(), &ratio, &goal(line), met];
    cells.map(str::to_owned).to_vec()
}

fn goal(line: &Line) -> String {
    match line.goal {
        Goal::RatioAtMost(most) => format!("<= {most}x"),
        Goal::RatioAtLeast(least) => format!(">= {least}x"),
        Goal::AtMost(_) | Goal::MemoryOfRecord => {
            line.goal.most().map(|most| format!("<= {}", shown(most, line.unit))).unwrap_or_default()
        }
        Goal::None => String::new(),
    }
}

fn shown(figure: f64, unit: Unit) -> String {
    match unit {
        Unit::Micros if figure >= 1000.0 => format!("{:.2} ms", figure / 1000.0),
        Unit::Micros => format!("{figure:.2} µs"),
        Unit::PerSecond => format!("{figure:.0}/s"),
        Unit::Calls => format!("{figure:.1}"),
        Unit::Bytes => format!("{figure:.0} B"),
    }
}

/// The same with the figures of every round.
pub(crate) fn json(rows: &[&Row], results: &Results, world: &World, rounds: usize) -> Value {
    let lines = rows.iter().flat_map(|row| row.lines.iter().map(move |line| (*row, line)));
    let lines: Vec<Value> = lines.map(|(row, line)| line_json(row, line, results)).collect();
    let failures: Vec<Value> =
        results.failures.iter().map(|(row, why)| json!({ "row": row, "why": why })).collect();
    json!({
        "gateway": world.gateway(Version::Now),
        "before": world.gateway(Version::Before),
        "machine": machine(),
        "rounds": rounds,
        "lines": lines,
        "failures": failures,
    })
}

fn line_json(row: &Row, line: &Line, results: &Results) -> Value {
    let outcome = Outcome::of(row, line, results);
    let against = line.against.map(|(arm, figure, name)| {
        json!({ "name": name, "median": outcome.against, "rounds": results.of(row.name, (arm, figure)) })
    });
    json!({
        "row": row.name,
        "about": row.about,
        "again": results.sum(row.name, Figure::Again),
        "skipped": results.sum(row.name, Figure::Skipped),
        "what": line.what,
        "unit": match line.unit {
            Unit::Micros => "µs",
            Unit::PerSecond => "1/s",
            Unit::Calls => "calls",
            Unit::Bytes => "bytes",
        },
        "halley": { "median": outcome.figure, "rounds": results.of(row.name, line.of) },
        "before": { "median": outcome.before, "rounds": results.of_version(row.name, line.of, Version::Before) },
        "against": against,
        "ratio": outcome.ratio,
        "goal": goal(line),
        "met": outcome.met,
    })
}

/// The number of cores and the CPU model, if Linux reports them.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{cores} cores ({})", model.map_or("unknown", |(_, model)| model))
}
