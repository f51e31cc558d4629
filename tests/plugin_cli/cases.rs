//! Test cases: what passes, what differs, and what is not a valid case.

use super::{CliFixture, guest};
use crate::support::repository;

fn cases(text: &str) -> CliFixture {
    let cli = CliFixture::new();
    cli.write("cases.toml", text);
    cli
}

fn filter(name: &str, body: &str, expect: &str) -> String {
    format!(
        "[[case]]\nname = \"{name}\"\n[[case.filter]]\nmessage = {{ room = \"r\", body = \"{body}\" }}\nexpect = {expect}\n"
    )
}

#[test]
fn failed_cases_show_a_diff_and_exit_with_1() {
    let text = [
        filter("holds", "drop spam", "{ drop = \"spam\" }"),
        filter("any reason will do", "drop spam", "\"drop\""),
        filter("another reason", "drop spam", "{ drop = \"ham\" }"),
        filter("another body", "body new", "{ body = \"old\", operation = 9 }"),
        filter("it fails", "trap", "{ fail = \"trapped\" }"),
        filter("it should not fail", "loop", "\"pass\""),
    ];
    let cli = cases(&text.concat());
    let tested =
        cli.plugin(&["test", &guest("dist/unruly.wasm"), "--cases", "cases.toml", "--deadline", "1s"]);
    assert_eq!(tested.code, Some(1), "{tested:?}");
    let wanted = "ok      holds
ok      any reason will do
FAILED  another reason
    filter 1: - expected, + got
      - drop: ham
      + drop: spam
FAILED  another body
    filter 1: - expected, + got
      - body: \"old\"
      - operation: 9
      + body: \"new\"
ok      it fails
FAILED  it should not fail
    filter 1: - expected, + got
      - pass
      + fail: exceeded its deadline of 1s
3 of 6 cases passed, with a deadline of 1s per call
";
    assert_eq!(tested.out, wanted);
}

#[test]
fn mistakes_in_cases_name_the_file_and_the_place() {
    let unruly = guest("dist/unruly.wasm");
    let mistake = |text: &str, args: &[&str]| {
        let cli = cases(text);
        let said = cli.plugin(&[&["test", unruly.as_str()], args].concat());
        assert_eq!(said.code, Some(2), "{said:?}");
        said.err
    };
    let file = ["--cases", "cases.toml"];
    let unknown = mistake("[[case]]\nname = \"c\"\nfilters = []\n", &file);
    assert!(
        unknown.contains("cases.toml") && unknown.contains("line 3") && unknown.contains("`filters`"),
        "{unknown}"
    );
    let nobody = mistake(&filter("for nobody", "x", "\"pass\"").replace("room = \"r\", ", ""), &file);
    assert!(nobody.contains("case `for nobody`") && nobody.contains("exactly one of"), "{nobody}");
    let nothing = mistake("", &file);
    assert!(nothing.contains("cases.toml has no cases"), "{nothing}");
    let cli = cases("[[case]]\nname = \"c\"\nrefused = \"is not WebAssembly\"\n");
    cli.write("text.wasm", "not code");
    let unloadable = cli.plugin(&["test", "text.wasm"]);
    assert_eq!((unloadable.code, unloadable.out.as_str()), (Some(1), ""), "no refusal of a configuration");
    assert!(unloadable.err.contains("no case can run: it is not WebAssembly"), "{}", unloadable.err);
    let elsewhere = mistake("", &["--cases", "gone.toml"]);
    assert!(elsewhere.contains("cannot read gone.toml"), "{elsewhere}");
    assert!(mistake("", &[]).contains("name the file with --cases"));
}

#[test]
fn each_case_has_its_own_time_state_and_config() {
    // The cookbook's policies depend on the time, on earlier messages, and on their configuration.
    let quiet_hours = repository("plugins/dist/quiet_hours.wasm").display().to_string();
    let quota = repository("plugins/dist/room_quota.wasm").display().to_string();
    let cli = cases(
        r#"
config = { messages = 1, minutes = 10, spare = [] }
[[case]]
name = "one in ten minutes"
[[case.filter]]
message = { room = "r", at = "2026-01-31T12:00:00Z" }
expect = "pass"
[[case.filter]]
message = { room = "r", at = "2026-01-31T12:09:59Z" }
expect = "drop"
[[case.filter]]
message = { room = "r", at = "2026-01-31T12:10:00Z" }
expect = "pass"
[[case]]
name = "nothing is left of the case before"
[[case.filter]]
message = { room = "r", at = "2026-01-31T12:00:00Z" }
expect = "pass"
[[case]]
name = "none at all is refused"
config = { messages = 0, minutes = 10, spare = [] }
refused = "must be at least 1"
"#,
    );
    let tested = cli.plugin(&["test", &quota, "--cases", "cases.toml"]);
    assert_eq!((tested.code, tested.out.contains("3 of 3 cases passed")), (Some(0), true), "{tested:?}");

    let night = |at: &str, expect: &str| {
        format!(
            "[[case]]\nname = \"at {at}\"\n[[case.offline]]\nmessage = {{ keys = [\"ann\"], at = \"2026-01-31T{at}Z\" }}\n\
             absent = {{ user = \"ann\" }}\nexpect = {expect}\n"
        )
    };
    let page = std::fs::read_to_string(repository("plugins/README.md")).expect("a page");
    let (_, section) = page.split_once("### Quiet hours").expect("a recipe");
    let (_, config) = section.split_once("[plugin.config]\n").expect("a configuration");
    let config = config.split("\n```").next().expect("its end");
    let cases_of = [night("15:00:00", "\"store\""), night("03:00:00", "{ notify = \"apns\" }")].concat();
    let cli = cases(&format!("[config]\n{config}\n{cases_of}"));
    let tested = cli.plugin(&["test", &quiet_hours, "--cases", "cases.toml"]);
    assert_eq!((tested.code, tested.out.contains("2 of 2 cases passed")), (Some(0), true), "{tested:?}");
}
