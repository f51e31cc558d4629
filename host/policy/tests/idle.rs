//! The plugin that decides nothing does so in every hook, however large the input.

use std::sync::Arc;

use super::*;
use crate::decision::{AbsenceCause, AbsentRecipient, IdKind, Verdict};
use crate::membership::{Connection, CurrentPlacement, Grouping, Membership};
use crate::wasm::idle::idle_plugin_with;
use crate::wasm::idle_plugin;

#[test]
fn it_decides_nothing_in_every_hook() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idle.wasm");
    std::fs::write(&file, idle_plugin().unwrap()).unwrap();
    let engine = Engine::new();
    let plugin = PluginConfig { on_error: OnError::Stall.into(), ..PluginConfig::new("idle", file) };
    let mut chain = engine.set(&[plugin]).chain();
    for size in [1_u32, 3, 256, 1000] {
        let messages: Vec<_> = (0..size).map(|number| room(&format!("message {number}"))).collect();
        let filtered = chain.filter("push", 3, messages.clone()).unwrap();
        assert_eq!(filtered.len(), messages.len());
        assert!(filtered.iter().all(|one| one.verdict == Verdict::Pass && one.trail.is_empty()));

        let absent = |n| AbsentRecipient {
            by_policy: false,
            user: format!("u{n}").as_str().into(),
            identity: IdKind::User,
            connection: None,
            cause: AbsenceCause::NotOnline,
        };
        let absent: Vec<AbsentRecipient> = (0..size).map(absent).collect();
        let decided = chain.decide(&messages[0], &absent).unwrap();
        assert_eq!(decided, vec![None; absent.len()]);

        let connection = |n| Connection {
            id: format!("c{n}").as_str().into(),
            user: None,
            comet: format!("10.0.0.{}:1", n % 3).as_str().into(),
            online: true,
        };
        let mut grouping = Grouping::new(Arc::new(Membership::new((0..size).map(connection), 0)));
        chain.regroup(&"r".into(), &mut grouping).unwrap();
        assert!(grouping.members().all(|(member, place)| place == CurrentPlacement::At(member.comet)));
    }
    assert!(chain.memory() > 0);
}

#[test]
fn tables_count_against_an_instances_memory() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = |tables: usize, memory: u64| {
        let file = folder.path().join(format!("{tables}.wasm"));
        let more = "(table 100000 funcref)".repeat(tables);
        std::fs::write(&file, idle_plugin_with(&more).unwrap()).unwrap();
        PluginConfig { memory: bytesize::ByteSize::mib(memory), ..PluginConfig::new("p", file) }
    };
    let engine = Engine::new();
    // 60 tables of 800 kB, and the module's memory.
    let refused = engine.refusal(&[plugin(60, 32)]);
    assert!(refused[0].contains("exceeded its memory limit of 32.0 MiB"), "{refused:?}");
    let mut chain = engine.set(&[plugin(60, 128)]).chain();
    chain.filter("push", 3, vec![room("hello")]).unwrap();
    assert!(chain.memory() > 60 * 800_000, "{}", chain.memory());
    // The number of elements in the report is not even compiled.
    let more = "(table 1000000 funcref)".repeat(60);
    let file = folder.path().join("bomb.wasm");
    std::fs::write(&file, idle_plugin_with(&more).unwrap()).unwrap();
    let refused = engine.refusal(&[PluginConfig::new("p", file)]);
    assert!(refused[0].contains("elements in its tables"), "{refused:?}");
}
