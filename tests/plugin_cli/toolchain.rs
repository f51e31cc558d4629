//! A missing toolchain, and code that does not compile.

use std::os::unix::fs::symlink;

use super::{CliFixture, said};

#[test]
fn a_missing_toolchain_is_reported_with_a_remedy() {
    let cli = CliFixture::new();
    cli.project("lonely", "filter");
    // Everything that the script needs, but no compiler and no installer.
    let tools = cli.path("tools");
    std::fs::create_dir(&tools).expect("made");
    for tool in ["sh", "dirname", "cat", "id", "mkdir", "find", "rm", "mktemp"] {
        let found = ["/usr/bin", "/bin"].map(|folder| std::path::Path::new(folder).join(tool));
        let found = found.into_iter().find(|file| file.exists()).unwrap_or_else(|| panic!("no {tool}"));
        symlink(found, tools.join(tool)).expect("linked");
    }
    let built = said(cli.command("lonely", &["build"]).env("PATH", &tools));
    assert_eq!(built.code, Some(1), "{built:?}");
    let remedy =
        built.err.find("install Rust from https://rustup.rs, then: rustup target add wasm32-unknown-unknown");
    assert!(remedy.is_some(), "{}", built.err);
    assert!(built.err.find("apt-get").is_none_or(|apt| Some(apt) > remedy), "{}", built.err);
    assert!(built.err.contains("does not build; see the errors above"), "{}", built.err);
}

#[test]
fn compiler_errors_are_shown_unchanged() {
    let cli = CliFixture::new();
    cli.project("wrong", "filter");
    cli.write("wrong/src/lib.rs", "fn broken( {");
    for command in ["build", "test", "run", "bench"] {
        let failed = cli.plugin_in("wrong", &[command]);
        assert_eq!((failed.code, failed.out.as_str()), (Some(1), ""), "{command}: {failed:?}");
        assert!(failed.err.contains("src/lib.rs:1"), "{}", failed.err);
    }
}

#[test]
fn a_missing_project_is_reported_with_a_remedy() {
    let cli = CliFixture::new();
    cli.write("Cargo.toml", "[package]\nname = \"other\"\n");
    let other = cli.plugin(&["build"]);
    assert_eq!((other.code, other.err.contains("is not a policy")), (Some(2), true), "{other:?}");
    std::fs::remove_file(cli.path("Cargo.toml")).expect("it was there");
    for command in ["build", "dev"] {
        let failed = cli.plugin(&[command]);
        assert_eq!(failed.code, Some(2), "{command}: {failed:?}");
        assert!(failed.err.contains("halley plugin new NAME"), "{}", failed.err);
    }
}
