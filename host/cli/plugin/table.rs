//! Answers of the gateway, as people read them.

use serde_json::Value;

/// Rows with columns as wide as their widest cell.
pub(super) struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these heads; without any, it has none.
    pub(super) fn new(heads: &[&str]) -> Self {
        let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
        Self(if heads.is_empty() { Vec::new() } else { vec![heads] })
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.0
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (at, row) in self.0.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            write!(f, "{}{}", if at > 0 { "\n" } else { "" }, line.trim_end())?;
        }
        Ok(())
    }
}

/// A value as text, without quotes; null is nothing.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(one) if one.len() == 1 => {
            // An enum with content: `{"quarantined": "why"}`.
            one.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect()
        }
        other => other.to_string(),
    }
}

/// A hash as logs and metrics show it.
pub(super) fn short(hash: &Value) -> String {
    text(hash).chars().take(12).collect()
}

/// What a change has put in force.
pub(super) fn in_force(answer: &Value) -> String {
    let mut lines = vec![format!("in force: generation {}", text(&answer["generation"]))];
    let mut table = Table::new(&[]);
    for plugin in answer["plugins"].as_array().into_iter().flatten() {
        table.row(vec![format!("  {}", text(&plugin["name"])), short(&plugin["hash"])]);
    }
    lines.push(table.to_string());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(vec!["wide".into(), "x".into()]);
        assert_eq!(table.to_string(), "A     LONG\nwide  x");
    }
}
