//! A built policy exports exactly the hooks that it names: the gateway derives the calls from the
//! component's type. Checks the output of `plugins/build.sh`.

use std::collections::BTreeSet;
use std::path::Path;

use wit_component::{ComponentEncoder, DecodedWasm};

const FILTER: &[&str] = &["filter", "filter-columns"];
const GROUPING: &[&str] = &["grouping", "grouping-columns"];

/// The bundled policies, the cookbook's, and their hooks. All describe their settings.
const BUNDLED: [(&str, &[&str]); 12] = [
    ("ab_routing", FILTER),
    ("calm_rooms", FILTER),
    ("comet_drain", GROUPING),
    ("duplicate_guard", FILTER),
    ("keep_important", &["retention"]),
    ("keyword_filter", FILTER),
    ("mask_words", FILTER),
    ("offline_rules", &["offline"]),
    ("quiet_hours", &["offline"]),
    ("regional_rooms", FILTER),
    ("retire_comet", GROUPING),
    ("room_quota", FILTER),
];

#[test]
fn a_policy_exports_the_hooks_that_it_names_and_no_others() {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    for (name, hooks) in BUNDLED {
        let path = dist.join(name).with_extension("wasm");
        let Ok(module) = std::fs::read(&path) else {
            eprintln!("skipped: {} is missing; plugins/build.sh builds it", path.display());
            continue;
        };
        let (imports, exports) = interfaces(&module);
        let interface = |name: &&str| format!("halley:policy/{name}@0.1.3");
        let expected: BTreeSet<String> =
            ["lifecycle", "settings"].iter().chain(hooks).map(interface).collect();
        assert_eq!(exports, expected, "exports of {name}");
        let known = ["host", "types"].map(|name| interface(&name));
        assert!(imports.iter().all(|import| known.contains(import)), "{name} imports {imports:?}");
    }
}

/// The names of the interfaces that a module imports and exports as a component.
fn interfaces(module: &[u8]) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(module).expect("a module with its world");
    let component = encoder.encode().expect("a component");
    let decoded = wit_component::decode(&component).expect("a component's type");
    let DecodedWasm::Component(resolve, world) = decoded else { panic!("a package, not a component") };
    let world = &resolve.worlds[world];
    let imports = world.imports.keys().map(|key| resolve.name_world_key(key)).collect();
    let exports = world.exports.keys().map(|key| resolve.name_world_key(key)).collect();
    (imports, exports)
}
