//! A missing toolchain, and code that does not compile.

use std::os::unix::fs::symlink;

use super::{Desk, said};

#[test]
fn where_no_toolchain_can_be_had_it_says_what_to_install() {
    let desk = Desk::new();
    desk.project("lonely", "filter");
    // Everything that the script needs, but no compiler and no installer.
    let tools = desk.path("tools");
    std::fs::create_dir(&tools).expect("made");
    for tool in ["sh", "dirname", "cat", "id", "mkdir", "find", "rm", "mktemp"] {
        let found = ["/usr/bin", "/bin"].map(|folder| std::path::Path::new(folder).join(tool));
        let found = found.into_iter().find(|file| file.exists()).unwrap_or_else(|| panic!("no {tool}"));
        symlink(found, tools.join(tool)).expect("linked");
    }
    let built = said(desk.command("lonely", &["build"]).env("PATH", &tools));
    assert_eq!(built.code, Some(1), "{built:?}");
    let remedy =
        built.err.find("install Rust from https://rustup.rs, then: rustup target add wasm32-unknown-unknown");
    assert!(remedy.is_some(), "{}", built.err);
    assert!(built.err.find("apt-get").is_none_or(|apt| Some(apt) > remedy), "{}", built.err);
    assert!(built.err.contains("does not build; see the errors above"), "{}", built.err);
}

#[test]
fn what_does_not_compile_is_shown_as_the_compiler_has_it() {
    let desk = Desk::new();
    desk.project("wrong", "filter");
    desk.write("wrong/src/lib.rs", "fn broken( {");
    for command in ["build", "test", "run", "bench"] {
        let failed = desk.plugin_in("wrong", &[command]);
        assert_eq!((failed.code, failed.out.as_str()), (Some(1), ""), "{command}: {failed:?}");
        assert!(failed.err.contains("src/lib.rs:1"), "{}", failed.err);
    }
}

#[test]
fn where_there_is_no_project_it_says_how_to_make_one() {
    let desk = Desk::new();
    desk.write("Cargo.toml", "[package]\nname = \"other\"\n");
    let other = desk.plugin(&["build"]);
    assert_eq!((other.code, other.err.contains("is not a policy")), (Some(2), true), "{other:?}");
    std::fs::remove_file(desk.path("Cargo.toml")).expect("it was there");
    for command in ["build", "dev"] {
        let failed = desk.plugin(&[command]);
        assert_eq!(failed.code, Some(2), "{command}: {failed:?}");
        assert!(failed.err.contains("halley plugin new NAME"), "{}", failed.err);
    }
}
