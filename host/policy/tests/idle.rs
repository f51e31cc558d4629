//! The plugin that decides nothing does so for every hook, however large the question.

use std::sync::Arc;

use super::*;
use crate::decision::{Absent, Cause, Identity, Verdict};
use crate::membership::{Connection, Grouping, Membership, Place};
use crate::policy::idle_plugin;

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

        let absent = |n| Absent {
            user: format!("u{n}").as_str().into(),
            identity: Identity::User,
            connection: None,
            cause: Cause::NotOnline,
        };
        let absent: Vec<Absent> = (0..size).map(absent).collect();
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
        assert!(grouping.members().all(|(member, place)| place == Place::At(member.comet)));
    }
    assert!(chain.memory() > 0);
}
