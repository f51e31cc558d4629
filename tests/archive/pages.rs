//! Pages of the archive, retention and erasure, without a gateway.

use halley::archive::{Archive, Config, init};
use halley::inbox::{OlderRange, Position};
use halley::message::UserId;
use sqlx::Row as _;

use crate::support::mariadb::MariaDb;

async fn archive(database: &MariaDb) -> Archive {
    let config = Config { url: database.url(), ..Config::default() };
    init(&config).await.expect("creates the tables");
    Archive::new(&config).expect("a valid URL")
}

/// Rows with these places in the inbox, each of a message of its own.
pub(crate) async fn insert(database: &MariaDb, user: &str, places: &[(u64, u64)]) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let sent = now.as_millis();
    let values = |at: usize, (ms, number): &(u64, u64)| {
        // In another order than the places.
        let offset = at ^ 1;
        format!(
            "('{user}', {sent}, 'push', 0, {offset}, 5, 4, 'lobby', '{at}', {ms}, 0, 'not-online', {ms}, {number}, 0, 0, 0)"
        )
    };
    for (chunk, some) in places.chunks(5_000).enumerate() {
        let values: Vec<_> =
            some.iter().enumerate().map(|(at, place)| values(chunk * 5_000 + at, place)).collect();
        database.run(&format!("INSERT INTO halley_inbox VALUES {}", values.join(","))).await;
    }
}

#[tokio::test]
async fn pages_follow_one_order_in_both_directions() {
    let Some(database) = MariaDb::start("pages_follow_one_order").await else { return };
    let archive = archive(&database).await;
    let mut places = Vec::new();
    for ms in [9, 10, 100] {
        places.extend([0, 1, 9, 10, u64::MAX].map(|number| (ms, number)));
    }
    insert(&database, "ann", &places).await;
    insert(&database, "bob", &places[..3]).await;
    let user = UserId::from("ann");
    let page = async |from: Option<Position>, to: Option<Position>, limit: usize, backwards: bool| {
        let range = OlderRange { from, to, limit, bytes: 1 << 20, backwards };
        let (found, _) = archive.page(&user, &range).await.expect("answers");
        found.iter().map(|(place, _)| (place.ms, place.number)).collect::<Vec<_>>()
    };
    let at = |(ms, number): (u64, u64)| Some(Position { ms, number });
    for limit in [1, 3, 500] {
        for backwards in [false, true] {
            let (mut seen, mut next) = (Vec::<(u64, u64)>::new(), None);
            // The place where the last page ended is in the next one as well.
            loop {
                let (from, to) = if backwards { (None, next) } else { (next, None) };
                let found = page(from, to, limit + 1, backwards).await;
                let known = usize::from(next.is_some());
                seen.extend(&found[known..]);
                next = found.last().copied().and_then(at);
                if found.len() <= known {
                    break;
                }
            }
            if backwards {
                seen.reverse();
            }
            assert_eq!(seen, places, "limit {limit}");
        }
    }
    let between = page(at((9, 10)), at((10, 1)), 9, false).await;
    assert_eq!(between, [(9, 10), (9, u64::MAX), (10, 0), (10, 1)]);
    let range = OlderRange { from: None, to: None, limit: 9, bytes: 0, backwards: false };
    assert_eq!(archive.page(&UserId::from("nobody"), &range).await.expect("answers"), (Vec::new(), true));
    // Not by sorting all that a user has.
    let plan = "EXPLAIN SELECT body FROM halley_inbox FORCE INDEX (inbox_order) WHERE user = 'ann' AND inbox_ms >= 9 \
                AND (inbox_ms > 9 OR inbox_number >= 1) ORDER BY inbox_ms, inbox_number LIMIT 5";
    let plan = &database.rows(plan).await[0];
    let (key, extra): (String, String) =
        (plan.try_get("key").expect("a key"), plan.try_get("Extra").expect("text"));
    assert!(key == "inbox_order" && !extra.contains("filesort"), "{key}: {extra}");
}

#[tokio::test]
async fn large_messages_are_read_a_few_at_a_time() {
    const SIZE: usize = 400_000;
    let Some(database) = MariaDb::start("large_messages").await else { return };
    let archive = archive(&database).await;
    let places: Vec<_> = (1..=20).map(|ms| (ms, 0)).collect();
    insert(&database, "ann", &places).await;
    database.run(&format!("UPDATE halley_inbox SET body = REPEAT('x', {SIZE})")).await;
    let user = UserId::from("ann");
    let (mut seen, mut from) = (Vec::new(), None);
    loop {
        let range = OlderRange { from, to: None, limit: 500, bytes: 2 * SIZE, backwards: false };
        let (found, are_all) = archive.page(&user, &range).await.expect("answers");
        assert!(found.len() <= 3 && found.iter().all(|(_, message)| message.body.len() == SIZE));
        seen.extend(found.iter().map(|(place, _)| (place.ms, place.number)));
        if are_all {
            break;
        }
        from = found.last().map(|(place, _)| Position { ms: place.ms + 1, number: 0 });
    }
    assert_eq!(seen, places);
}

#[tokio::test]
async fn an_erased_user_has_nothing_and_gets_new_messages() {
    let Some(database) = MariaDb::start("an_erased_user").await else { return };
    let archive = archive(&database).await;
    let rows: Vec<_> = (0..12_000).map(|at| (1_000 + at, 0)).collect();
    insert(&database, "ann", &rows).await;
    insert(&database, "bob", &rows[..2]).await;
    assert_eq!(archive.erase(&"ann".into()).await.expect("erases"), 12_000);
    assert_eq!(archive.erase(&"ann".into()).await.expect("erases"), 0);
    assert_eq!(database.archived().await, 2);
    assert_eq!(database.number("SELECT COUNT(*) FROM halley_erased WHERE user = 'ann'").await, 1);
}
