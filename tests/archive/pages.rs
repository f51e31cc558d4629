//! Pages of the archive, retention and erasure, without a gateway.

use halley::archive::{Archive, ArchivePage, ArchivedMessage, Config, Position, init};
use halley::message::UserId;

use crate::support::mariadb::MariaDb;

async fn archive(database: &MariaDb) -> Archive {
    let config = Config { url: database.url(), ..Config::default() };
    init(&config).await.expect("creates the tables");
    Archive::new(&config).expect("a valid URL")
}

async fn insert(database: &MariaDb, user: &str, rows: &[(i64, &str, i32, i64)]) {
    let values = |(sent, topic, partition, offset): &(i64, &str, i32, i64)| {
        format!(
            "('{user}', {sent}, '{topic}', {partition}, {offset}, 5, 4, 'lobby', 'body', {sent}, 0, 'not-online')"
        )
    };
    for some in rows.chunks(5_000) {
        let values: Vec<_> = some.iter().map(values).collect();
        database.run(&format!("INSERT INTO halley_inbox VALUES {}", values.join(","))).await;
    }
}

#[tokio::test]
async fn pages_follow_one_order_in_both_directions() {
    let Some(database) = MariaDb::start("pages_follow_one_order").await else { return };
    let archive = archive(&database).await;
    // Few different values, so that each column decides somewhere.
    let mut rows = Vec::new();
    for sent in 1_000..1_004 {
        for topic in ["a", "b"] {
            rows.extend(
                [9, 10].into_iter().flat_map(|partition| [9, 10].map(|at| (sent, topic, partition, at))),
            );
        }
    }
    insert(&database, "ann", &rows).await;
    insert(&database, "bob", &rows[..3]).await;
    rows.sort();
    let user = UserId::from("ann");
    let key = |message: &ArchivedMessage| {
        let Position { sent_ms, topic, partition, offset, .. } = message.position.clone();
        (sent_ms, topic, partition, offset)
    };
    let expected: Vec<_> =
        rows.iter().map(|(sent, topic, part, at)| (*sent, (*topic).to_owned(), *part, *at)).collect();
    for limit in [1, 3, 500] {
        for is_backwards in [false, true] {
            let (mut seen, mut last) = (Vec::new(), None::<Position>);
            loop {
                let (after, before) =
                    if is_backwards { (None, last.as_ref()) } else { (last.as_ref(), None) };
                let page = ArchivePage { user: &user, after, before, limit, is_backwards };
                let found = archive.page(&page).await.expect("answers");
                let Some(end) = found.last() else { break };
                seen.extend(found.iter().map(key));
                last = Some(end.position.clone());
            }
            if is_backwards {
                seen.reverse();
            }
            assert_eq!(seen, expected, "limit {limit}");
        }
    }
    let (after, before) =
        (Position::new(1_001, "b/9/9/0000000000000005"), Position::new(1_001, "b/10/10/0000000000000005"));
    let page = ArchivePage {
        user: &user,
        after: after.as_ref(),
        before: before.as_ref(),
        limit: 9,
        is_backwards: false,
    };
    let between: Vec<_> = archive
        .page(&page)
        .await
        .expect("answers")
        .iter()
        .map(|m| (m.position.partition, m.position.offset))
        .collect();
    assert_eq!(between, [(9, 10), (10, 9)]);
    let nobody =
        ArchivePage { user: &"nobody".into(), after: None, before: None, limit: 9, is_backwards: false };
    assert_eq!(archive.page(&nobody).await.expect("answers"), []);
}

#[tokio::test]
async fn an_erased_user_has_nothing_and_gets_new_messages() {
    let Some(database) = MariaDb::start("an_erased_user").await else { return };
    let archive = archive(&database).await;
    let rows: Vec<_> = (0..12_000).map(|at| (1_000 + at, "a", 0, at)).collect();
    insert(&database, "ann", &rows).await;
    insert(&database, "bob", &rows[..2]).await;
    assert_eq!(archive.erase(&"ann".into()).await.expect("erases"), 12_000);
    assert_eq!(archive.erase(&"ann".into()).await.expect("erases"), 0);
    assert_eq!(database.archived().await, 2);
    assert_eq!(database.number("SELECT COUNT(*) FROM halley_erased WHERE user = 'ann'").await, 1);
}
