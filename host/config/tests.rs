//! Loading: defaults, places of mistakes, the environment.

use super::*;

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<(String, String)>> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("halley.toml");
    std::fs::write(&file, text).expect("written");
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let shorten = |place: String| place.replace(&format!("{}/", folder.path().display()), "");
    Config::load_with(Some(&file), environment)
        .map_err(|mistakes| mistakes.0.into_iter().map(|m| (shorten(m.place), m.text)).collect())
}

#[test]
fn nothing_is_required() {
    assert_eq!(load("", &[]), Ok(Config::default()));
    assert_eq!(Config::load_with(None, []).expect("defaults"), Config::default());
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let example = include_str!("../../examples/halley.toml");
    assert_eq!(load(example, &[]), Ok(Config::default()));

    let shown: toml::Table = example.parse().expect("TOML");
    let mut defaults = toml::Table::try_from(Config::default()).expect("serializable");
    defaults.remove("plugin");
    assert_eq!(keys("", &shown), keys("", &defaults), "keys of examples/halley.toml");
    let unset =
        ["#directory =", "#name =", "#path =", "#on_error =", "#deadline =", "#memory =", "#config ="];
    assert_eq!(unset.map(|key| example.contains(key)), [true; 7], "keys without a default");
}

/// All keys of a table, with their sections.
fn keys(prefix: &str, table: &toml::Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            toml::Value::Table(inner) => keys.extend(self::keys(&format!("{path}."), inner)),
            _ => keys.push(path),
        }
    }
    keys.sort();
    keys
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let text = "[kafka]\nbrokerz = \"a:1\"\ngroup = 5\n\n[delivery]\ntimeout = \"soon\"\n\n[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\non_error = \"explode\"\n\n[nonsense]\n";
    let mistakes = load(text, &[]).expect_err("wrong");
    let places: Vec<_> = mistakes.iter().map(|(place, _)| place.as_str()).collect();
    let mut sorted = places.clone();
    sorted.sort_unstable();
    let expected = ["halley.toml:11", "halley.toml:13", "halley.toml:2", "halley.toml:3", "halley.toml:6"];
    assert_eq!(sorted, expected, "{mistakes:#?}");
    let about = |place: &str| mistakes.iter().find(|(at, _)| at == place).expect("named").1.clone();
    assert!(about("halley.toml:2").starts_with("`kafka.brokerz`: unknown field"), "{mistakes:#?}");
    assert!(about("halley.toml:11").contains("explode"), "{mistakes:#?}");
}

#[test]
fn what_is_not_toml_says_where() {
    let mistakes = load("[kafka\nbrokers = 1", &[]).expect_err("wrong");
    assert!(mistakes[0].1.contains("line 1"), "{mistakes:?}");
}

#[test]
fn the_environment_wins() {
    let environment = [
        ("HALLEY__KAFKA__GROUP", "123"),
        ("HALLEY__KAFKA__TOPICS", r#"["a", "b"]"#),
        ("HALLEY__DELIVERY__MAX_BATCH", "7"),
        ("HALLEY__REDIS__URL", "redis://elsewhere:1"),
    ];
    let config = load("[kafka]\ngroup = \"file\"", &environment).expect("right");
    assert_eq!(config.kafka.group, "123");
    assert_eq!(config.kafka.topics, ["a", "b"]);
    assert_eq!(config.delivery.max_batch, 7);
    assert_eq!(config.redis.url, "redis://elsewhere:1");
    let mistakes = load("", &[("HALLEY__DELIVERY__MAX_BATCH", "many")]).expect_err("wrong");
    assert_eq!(mistakes[0].0, "environment variable HALLEY__DELIVERY__MAX_BATCH");
}

#[test]
fn values_that_do_not_fit_together_are_named() {
    let text = "[delivery]\ngive_up_after = \"1s\"\n[routing]\nrooms = \"every-comet\"";
    let mistakes = load(text, &[]).expect_err("wrong");
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
}
