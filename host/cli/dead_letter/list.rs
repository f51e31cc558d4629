//! `halley dead-letter list`.

use std::collections::BTreeMap;

use crate::cli::dead_letter::filter::{FilterArgs, no_topic};
use crate::cli::dead_letter::show::{LetterTable, json};
use crate::cli::{ConfigArgs, EXIT_SUCCESS, fail, print, print_json};
use crate::dead_letter::{DeadLetter, Reader, Stage};
use crate::kafka;

/// Arguments of `halley dead-letter list`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Only pending letters: those not redriven yet.
    #[arg(long)]
    pending: bool,
    /// The consumer group that stores the progress of redrives [default: `[kafka] group` and
    /// "-redrive"].
    #[arg(long, value_name = "NAME", requires = "pending")]
    group: Option<String>,
    /// Prints one JSON object per line with everything. Keys, values and headers are {"text": ...} if
    /// they are text, otherwise {"base64": ...}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &kafka::Config, args: &Args) -> anyhow::Result<u8> {
    let group = args.group.clone().unwrap_or_else(|| format!("{}-redrive", config.group));
    let Some(mut reader) = Reader::open(config, &group).await? else {
        fail(&no_topic(&config.dead_letter_topic));
        return Ok(EXIT_SUCCESS);
    };
    let redriven = if args.pending { Some(reader.redriven(config, &group).await?) } else { None };
    let is_due = |letter: &DeadLetter| redriven.as_ref().is_none_or(|redriven| !redriven.contains(letter));
    let filter = args.filter.filter();
    let mut shown = LetterPrinter { table: (!args.json).then(LetterTable::default), stages: BTreeMap::new() };
    let mut left = args.filter.limit.unwrap_or(u64::MAX);
    'reading: loop {
        let letters = reader.read().await?;
        if letters.is_empty() {
            break;
        }
        for letter in letters.iter().filter(|letter| filter.matches(letter) && is_due(letter)) {
            if left == 0 {
                break 'reading;
            }
            left -= 1;
            shown.show(letter);
        }
    }
    shown.finish(&config.dead_letter_topic);
    Ok(EXIT_SUCCESS)
}

struct LetterPrinter {
    /// `None` prints JSON.
    table: Option<LetterTable>,
    /// Number of letters by stage, in the order of the stages; those without a known stage last.
    stages: BTreeMap<usize, u64>,
}

impl LetterPrinter {
    fn show(&mut self, letter: &DeadLetter) {
        let stage = Stage::ALL.iter().position(|stage| stage.as_str() == letter.stage);
        *self.stages.entry(stage.unwrap_or(Stage::ALL.len())).or_default() += 1;
        match &mut self.table {
            Some(table) => table.add(letter),
            None => print_json(&json(letter).to_string()),
        }
    }

    fn finish(self, topic: &str) {
        let Some(mut table) = self.table else { return };
        table.flush();
        let total: u64 = self.stages.values().sum();
        let count = |(stage, count): (&usize, &u64)| {
            format!(
                "{count} {}",
                Stage::ALL.get(*stage).map_or("without a known stage", |stage| stage.as_str())
            )
        };
        let stages: Vec<_> = self.stages.iter().map(count).collect();
        print(&match total {
            0 => format!("no dead letters in `{topic}` match the filters"),
            1 => format!("1 dead letter: {}", stages.join(", ")),
            _ => format!("{total} dead letters: {}", stages.join(", ")),
        });
    }
}
