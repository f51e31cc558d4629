//! Compiler bombs are recognised by their content, not by their size.

use proptest::prelude::*;

use super::*;

fn contents(bytes: &[u8]) -> ModuleSize {
    let mut walk = ModuleWalk::default();
    for payload in Parser::new(0).parse_all(bytes) {
        assert!(walk.visit(payload.unwrap()).is_ok());
    }
    walk.contents
}

fn refusal(text: &str) -> String {
    check(&wat::parse_str(text).unwrap()).unwrap_err().to_string()
}

/// Nested components, each of which instantiates the inner one this many times.
fn nested(levels: usize, times: usize) -> String {
    let mut text = "(component)".to_owned();
    for _ in 0..levels {
        let instances = "(instance (instantiate 0))".repeat(times);
        text = format!("(component {text} {instances})");
    }
    text
}

/// A function with this many variables and blocks.
fn function(variables: usize, blocks: usize) -> String {
    let blocks = "(block (br_if 0 (local.get 0)))".repeat(blocks);
    format!("(module (func (local {}) {blocks}))", "i32 ".repeat(variables))
}

#[test]
fn known_compiler_bombs_are_refused() {
    // 26 levels with two instances each: 1,482 bytes. They exceed the nesting limit already; the
    // doubling is refused at an allowed depth as well.
    let why = refusal(&nested(26, 2));
    assert!(why.contains("17 levels of nested components or more; the limit is 16"), "{why}");
    let why = refusal(&nested(15, 3));
    assert!(why.contains("steps to instantiate") && why.contains("the limit is 100000"), "{why}");
    // 50,000 variables times 20,000 blocks: 340 KB.
    let why = refusal(&function(50_000, 20_000));
    assert!(
        why.contains("2000000000 variables times branches in one function or more; the limit is"),
        "{why}"
    );
}

#[test]
fn parameters_are_variables_and_targets_of_a_table_are_branches() {
    let (parameters, targets) = ("i32 ".repeat(900), "0 ".repeat(100_000));
    let table = format!("(block (br_table {targets} (local.get 0)))");
    let why = refusal(&format!("(module (func) (func (param {parameters}) {table}))"));
    assert!(why.contains("variables times branches"), "{why}");
}

#[test]
fn declared_sizes_are_bounded() {
    let many = |one: &str, number: usize| format!("(module {})", one.repeat(number));
    let modules = |one: &str, number: usize| format!("(component {})", one.repeat(number));
    for (bomb, what) in [
        (many("(table 1000000 funcref)", 60), "elements in its tables"),
        (many("(table 4294967295 funcref)", 1), "4294967295 elements in its tables"),
        (many("(table 1 funcref)", 101), "101 tables"),
        (modules("(core module (memory 0))", 101), "101 memories"),
        (modules("(core module)", 501), "501 modules"),
        (many("(data \"a\")", 400_001), "400001 segments"),
        (many("(func)", 500_001), "500001 functions"),
    ] {
        let why = refusal(&bomb);
        assert!(why.contains(what), "{why}");
    }
    assert!(check(&wat::parse_str(many("(table 1000 funcref)", 60)).unwrap()).is_ok());
    let why = check(&vec![0; SIZE as usize + 1]).unwrap_err().to_string();
    assert!(why.contains("67108865 bytes"), "{why}");
}

#[test]
fn imported_components_are_refused() {
    for text in [
        r#"(component (import "a" (component)) (instance (instantiate 0)))"#,
        r#"(component (component $c (component $d) (export "d" (component $d))) (instance $i (instantiate $c))
            (alias export $i "d" (component $again)) (instance (instantiate $again)))"#,
    ] {
        assert!(refusal(text).contains("passes components to components"));
    }
}

#[test]
fn aliased_components_cost_the_same() {
    let inner = nested(3, 3);
    for text in [
        format!(
            "(component {inner} (component (alias outer 1 0 (component)) (instance (instantiate 0))) \
             (instance (instantiate 1)))"
        ),
        format!(r#"(component {inner} (export $again "a" (component 0)) (instance (instantiate $again)))"#),
    ] {
        let steps = contents(&wat::parse_str(&text).unwrap()).steps;
        assert!(steps > 3 + 9 + 27, "{steps}: {text}");
    }
}

#[test]
fn supported_languages_stay_far_below_the_limits() {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for folder in ["plugins/dist", "plugins/languages/dist", "tests/guests/dist"] {
        // What was not built is covered elsewhere, or reported as missing.
        let Ok(entries) = std::fs::read_dir(repository.join(folder)) else { continue };
        let paths = entries.map(|entry| entry.unwrap().path());
        for path in paths.filter(|path| path.extension().is_some_and(|end| end == "wasm")) {
            let bytes = std::fs::read(&path).unwrap();
            check(&bytes).unwrap();
            let held = contents(&bytes);
            let path = path.display();
            assert!(held.steps * 10 < STEPS && held.functions * 10 < FUNCTIONS, "{path}: {held:?}");
            assert!(held.variables_times_branches * 4 < VARIABLES_TIMES_BRANCHES, "{path}: {held:?}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nested_instances_are_counted_per_instantiation(levels in 0_usize..12, times in 0_usize..6) {
        // Each level counts its instances, and what each of them costs.
        let expected = (0..levels).fold(0_u64, |inside, _| (times as u64).saturating_mul(inside + 1));
        let bytes = wat::parse_str(nested(levels, times)).unwrap();
        prop_assert_eq!(contents(&bytes).steps, expected);
        prop_assert_eq!(check(&bytes).is_err(), expected > STEPS);
    }

    #[test]
    fn function_cost_is_never_underestimated(variables in 1_usize..3_000, blocks in 0_usize..3_000) {
        let counted = contents(&wat::parse_str(function(variables, blocks)).unwrap()).variables_times_branches;
        prop_assert!(counted >= (variables * blocks * 2) as u64);
    }

    #[test]
    fn arbitrary_bytes_never_panic(cut in 0_usize..40, at in 0_usize..200, byte: u8) {
        let mut bytes = wat::parse_str(nested(4, 2)).unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let _ = check(&bytes);
    }
}
