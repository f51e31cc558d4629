//! A producer other than librdkafka: franz-go, which writes any bytes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::program;

/// Settings; each [`Producer::write`] is a separate run.
#[derive(Debug, Clone)]
pub struct Producer {
    program: PathBuf,
    args: Vec<String>,
}

/// A record to write.
#[derive(Debug, Clone, Default)]
pub struct Outgoing(serde_json::Map<String, Value>);

/// The position of a written record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Written {
    pub partition: i32,
    pub offset: i64,
}

impl Outgoing {
    /// A record with this value, in partition 0, without key and headers.
    pub fn new(value: impl AsRef<[u8]>) -> Self {
        Self::default().with("value", json!(STANDARD.encode(value)))
    }

    /// Sets the partition.
    pub fn partition(self, partition: i32) -> Self {
        self.with("partition", json!(partition))
    }

    /// Sets the key.
    pub fn key(self, key: impl AsRef<[u8]>) -> Self {
        self.with("key", json!(STANDARD.encode(key)))
    }

    /// Adds a header, whose name may be any bytes.
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let header = json!([STANDARD.encode(name), STANDARD.encode(value)]);
        let headers = self.0.entry("headers").or_insert_with(|| json!([]));
        headers.as_array_mut().expect("it was made as a list").push(header);
        self
    }

    /// Appends this many zero bytes to the value, which compress to nearly nothing.
    pub fn zeros(self, count: usize) -> Self {
        self.with("zeros", json!(count))
    }

    /// Repeats the record.
    pub fn times(self, count: usize) -> Self {
        self.with("repeat", json!(count.saturating_sub(1)))
    }

    /// Sets the timestamp, in milliseconds since 1970.
    pub fn timestamp_ms(self, ms: i64) -> Self {
        self.with("timestamp_ms", json!(ms))
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }
}

impl Producer {
    /// A producer for this topic. `None`, with a warning, if there is no Go.
    pub async fn new(brokers: &str, topic: &str) -> Option<Self> {
        let args = ["produce", "-brokers", brokers, "-topic", topic].map(str::to_owned).to_vec();
        Some(Self { program: program("go").await?, args })
    }

    /// Compresses batches: `gzip`, `snappy`, `lz4` or `zstd`.
    pub fn compression(self, codec: &str) -> Self {
        self.with(&["-compression", codec])
    }

    /// Maximum size of a batch before compression; default 1 MiB.
    pub fn batch_bytes(self, bytes: usize) -> Self {
        self.with(&["-batch-bytes", &bytes.to_string()])
    }

    /// Writes in a transaction of this transactional id, and commits it.
    pub fn transaction(self, id: &str) -> Self {
        self.with(&["-transaction", id])
    }

    /// Aborts the transaction instead.
    pub fn abort(self) -> Self {
        self.with(&["-abort"])
    }

    /// Writes these records, and returns their positions, in the order of the broker.
    ///
    /// # Panics
    /// If the broker does not accept them within a minute.
    pub async fn write(&self, records: &[Outgoing]) -> Vec<Written> {
        let input: String = records.iter().map(|record| format!("{}\n", json!(record.0))).collect();
        let (program, args) = (self.program.clone(), self.args.clone());
        let run = tokio::task::spawn_blocking(move || run(&program, &args, &input));
        run.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }

    fn with(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }
}

fn run(program: &std::path::Path, args: &[String], input: &str) -> Vec<Written> {
    let mut command = Command::new(program);
    let piped = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("what was built starts");
    // It reads everything before it writes, so that neither side blocks the other.
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads all that it is given");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {}: {said}", program.display(), args.join(" "));
    let place = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let number = |key| line[key].as_i64().expect("a number");
        Written { partition: number("partition") as i32, offset: number("offset") }
    };
    String::from_utf8_lossy(&output.stdout).lines().map(place).collect()
}
