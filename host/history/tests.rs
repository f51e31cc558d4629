//! Histories in a real Redis, and the walk back.

use bytes::Bytes;
use prometheus_client::registry::Registry;
use proptest::prelude::*;

use super::lookback::Lookback;
use super::*;
use crate::inbox::{PageQuery, Position};
use crate::message::{Audience, MessageId, Origin, Record, RoomId};
use crate::redis_client::testing::RedisServer;

fn message(partition: i32, offset: i64) -> Message {
    let origin = Origin { topic: "push".into(), partition, offset };
    let timestamp_ms = Some(1_700_000_000_000 + offset);
    let record = Record { origin, timestamp_ms, key: None, value: None, headers: Vec::new(), trusted: false };
    Message {
        id: record.message_id(),
        record: record.into(),
        audience: Audience::Room("im_1".into()),
        operation: 4,
        body: Bytes::from(offset.to_string()),
    }
}

async fn store(history: &RedisRoomHistory, progress: &mut HistoryProgress, partition: i32, offsets: &[i64]) {
    let room = RoomId::from("im_1");
    let messages: Vec<Message> = offsets.iter().map(|offset| message(partition, *offset)).collect();
    let messages: Vec<_> = messages.iter().map(|message| (&room, message)).collect();
    history.store(&messages, progress).await.expect("stored");
}

async fn bodies(reader: &RoomHistoryReader) -> Vec<String> {
    let query = PageQuery { limit: 500, ..PageQuery::default() };
    let page = reader.page(&"im_1".into(), &query).await.expect("reads");
    page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.message.body).into_owned()).collect()
}

#[tokio::test]
async fn a_message_is_stored_once_however_often_it_is_delivered() {
    let server = RedisServer::start().await;
    let config = Config { max_per_room: 50, ..Config::default() };
    let metrics = Metrics::register(&mut Registry::default());
    let history = RedisRoomHistory::new(server.client(), &config, metrics.clone());
    let reader = RoomHistoryReader::new(server.client(), &config, None);
    let mut progress = HistoryProgress::default();
    store(&history, &mut progress, 0, &[1, 2, 3]).await;
    store(&history, &mut progress, 0, &[4, 5]).await;
    // Assigned again, from an earlier offset, with another partition in between.
    store(&history, &mut HistoryProgress::default(), 1, &[7]).await;
    let mut again = HistoryProgress::default();
    store(&history, &mut again, 0, &[3, 4]).await;
    store(&history, &mut again, 0, &[5, 6]).await;
    assert_eq!(bodies(&reader).await, ["1", "2", "3", "4", "5", "7", "6"]);
    assert_eq!((metrics.stored.get(), metrics.repeated.get()), (7, 3));
    let long: Vec<i64> = (10..100).collect();
    store(&history, &mut again, 0, &long).await;
    let kept = bodies(&reader).await;
    assert_eq!((kept.len(), kept.last().map(String::as_str)), (50, Some("99")));
    assert!(reader.page(&"im_1".into(), &PageQuery::default()).await.expect("reads").truncated);
    // A key that is not a stream holds up nothing.
    server.run(&["SET", "halley:history:im_1", "spoilt"]).await;
    store(&history, &mut HistoryProgress::default(), 0, &[200]).await;
    assert_eq!(metrics.not_stored.get(), 1);
}

proptest! {
    /// The walk finds exactly what is there, and reads no more than it has to.
    #[test]
    fn the_walk_finds_what_is_stored(
        stored in prop::collection::vec((0_i32..3, 1_i64..3, prop::bool::weighted(0.1)), 0..60),
        from in 0_i64..60, count in 1_i64..10,
    ) {
        let (mut offsets, mut stream) = ([0_i64; 3], Vec::new());
        for (partition, step, is_redriven) in stored {
            let offset = &mut offsets[partition as usize];
            *offset += step;
            // One that was redriven has an old offset.
            let at = if is_redriven { 1000 - *offset } else { *offset };
            stream.push((message(partition, at).id, is_redriven));
        }
        let wanted: Vec<MessageId> = (from..from + count).map(|offset| message(0, offset).id).collect();
        let offset = |index: usize| Some(from + index as i64);
        let all = wanted.iter().enumerate().map(|(index, id)| (index, id, offset(index)));
        let mut lookback = Lookback::new("push", 0, all);
        let mut place = Position { ms: 1, number: 1000 };
        let mut places = std::collections::HashMap::new();
        for (id, is_redriven) in stream.iter().rev() {
            place.number -= 1;
            places.insert(place, id);
            if !lookback.take(place, id.as_str(), *is_redriven) {
                break;
            }
        }
        let (found, _) = lookback.finish();
        for (index, place) in &found {
            prop_assert_eq!(places[place], &wanted[*index]);
        }
        let mut found: Vec<usize> = found.into_iter().map(|(index, _)| index).collect();
        found.sort_unstable();
        let expected: Vec<usize> =
            (0..wanted.len()).filter(|at| stream.iter().any(|(id, again)| !again && *id == wanted[*at])).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn rooms_are_named_or_begin_alike() {
    let config = Config { rooms: vec!["im_*".into(), "lobby".into()], ..Config::default() };
    assert_eq!(config.validate(), []);
    let kept = ["im_1", "im_", "lobby", "lobby2", "xim_1"].map(|room| {
        let message = Message { audience: Audience::Room(room.into()), ..message(0, 1) };
        config.retention_of(&message).history
    });
    assert_eq!(kept, [true, true, true, false, false]);
    let bad = Config { rooms: vec![String::new(), "a*b".into()], max_per_room: 0, ..Config::default() };
    assert_eq!(bad.validate().len(), 3);
}
