//! The demo's output: plain lines for a terminal of 80 columns, coloured where supported.

use std::time::Duration;

use owo_colors::{OwoColorize as _, Stream::Stdout};

use crate::cli::demo::comets::ReceivedCall;
use crate::cli::{print, print_styled};
use crate::telemetry::escape;

/// The terminal.
pub(super) struct Screen {
    pauses: bool,
}

impl Screen {
    /// With pauses between the steps, so that a person can follow.
    pub(super) fn new(pauses: bool) -> Self {
        Self { pauses }
    }

    /// A plain line.
    pub(super) fn line(&self, text: &str) {
        print(text);
    }

    /// The first lines.
    pub(super) fn welcome(&self) {
        print("");
        print_styled(&format!("  {}", "Halley, the demo".if_supports_color(Stdout, |t| t.bold())));
        print("  One process: a Kafka, three comets, a directory in memory, policies in WebAssembly.");
        print("  Rooms: music (alice, bob on comet 1; carol on comet 2), games (dave on 2; erin on 3),");
        print("         news (grace on 1; heidi on 3; frank, who is away, on 3)");
    }

    /// The title of a step.
    pub(super) async fn step(&self, number: usize, title: &str) {
        if self.pauses && number > 1 {
            tokio::time::sleep(Duration::from_millis(1200)).await;
        }
        print("");
        let number = format!("{number}.");
        print_styled(&format!(
            "  {} {}",
            number.if_supports_color(Stdout, |t| t.bold()),
            title.if_supports_color(Stdout, |t| t.bold())
        ));
    }

    /// A message being produced.
    pub(super) fn sent(&self, to: &str, body: &str) {
        let arrow = "kafka  ◀".to_owned();
        let told = format!("{to}: {body}");
        let told = escape::line(&told, escape::LONGEST);
        print_styled(&format!("     {} {told}", arrow.if_supports_color(Stdout, |t| t.dimmed())));
    }

    /// A call that a comet received.
    pub(super) fn arrived(&self, arrival: &ReceivedCall) {
        let ReceivedCall { comet, method, to, body } = arrival;
        let name = format!("comet {}", comet + 1);
        let name = match comet {
            0 => name.if_supports_color(Stdout, |t| t.cyan()).to_string(),
            1 => name.if_supports_color(Stdout, |t| t.magenta()).to_string(),
            _ => name.if_supports_color(Stdout, |t| t.yellow()).to_string(),
        };
        let told = format!("{to}: {body}");
        print_styled(&format!("     {name} ▶ {method:<13} {}", escape::line(&told, escape::LONGEST)));
    }

    /// Something that the gateway did or reported.
    pub(super) fn note(&self, text: &str) {
        print(&format!("     {text}"));
    }

    /// Whether a step passed.
    pub(super) fn verdict(&self, passed: bool, text: &str) {
        let text = escape::line(text, escape::LONGEST);
        if passed {
            print_styled(&format!("     {} {text}", "✓".if_supports_color(Stdout, |t| t.green())));
        } else {
            print_styled(&format!("     {} {text}", "✗".if_supports_color(Stdout, |t| t.red())));
        }
    }
}
