//! The stories that `tests/README.md` shows, as they run.

// [routing]
mod first_routing_story {
    use crate::support::comet::{FakeComet, To};
    use crate::support::gateway::gateway;
    use crate::support::kafka::kafka;
    use crate::support::redis::Redis;

    #[tokio::test]
    async fn a_room_message_reaches_the_members_comet() {
        // The world: a directory with one member, the comet that holds its connection, a topic.
        let (redis, comet) = (Redis::start().await, FakeComet::start().await);
        redis.join("lobby", "conn_1", "user_1", comet.address()).await;
        let topic = kafka().topic("readme", 1).await;

        // The gateway's own binary, as a child process; it is ready when `start` returns.
        let gateway = gateway(&topic).redis(&redis).start().await;

        // The action, and a condition that shows that it has finished.
        kafka().produce_room(&topic, "lobby", "hello").await;
        gateway.wait_until_settled(&topic).await;

        // The promise, and what an operator sees.
        assert_eq!(comet.deliveries(), [(To::Room("lobby".into()), 4, "hello".to_owned())]);
        let delivered = r#"halley_recipients_total{outcome="delivered"}"#;
        assert_eq!(gateway.metric(delivered).await, Some(1.0));
    }
}
// [end]

// [fault]
mod first_fault_story {
    use crate::faults::world::World;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_comet_that_restarts_loses_and_reorders_nothing() {
        // Four rooms with users on two comets, a Redis of their own, and a topic.
        let world = World::new("readme", 4, 2).await;
        let gateway = world.gateway().await.start().await;

        // Every room receives numbered messages while this runs.
        world
            .load_during(async {
                world.wait_for_work(50).await;
                world.comets[0].comet.stop().await;
                world.wait_for_work(50).await;
                world.comets[0].comet.restart().await;
                world.wait_for_work(50).await;
            })
            .await;

        // Every message has an outcome; the report is their history.
        world.settle(&gateway).await;
        let report = world.report().await;
        report.assert_nothing_lost_or_reordered();
        report.assert_no_dead_letters();
    }
}
// [end]

/// The code in the document is compiled here, so that it stays correct.
#[test]
fn the_readme_shows_the_stories_that_run() {
    let (readme, source) = (include_str!("README.md"), include_str!("readme.rs"));
    for story in ["routing", "fault"] {
        let (_, rest) = source.split_once(&format!("// [{story}]\n")).expect("marked");
        let (code, _) = rest.split_once("// [end]\n").expect("marked");
        let shown = format!("```rust\n{code}```\n");
        assert!(
            readme.contains(&shown),
            "tests/README.md should show the {story} story as tests/readme.rs has it"
        );
    }
}
