//! The independent peers behave as the stories assume, and a gateway reaches comets on every gRPC
//! implementation in both dialects.

use std::time::Duration;

use bytes::Bytes;
use halley::comets::proto::chatroom;
use tonic::Code;

use crate::support::call;
use crate::support::comet::{Call, To};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::peers::{Outgoing, PeerComet, Producer, Stack, Written};
use crate::support::redis::Redis;

#[tokio::test(flavor = "multi_thread")]
async fn comets_on_grpc_go_and_the_c_core_get_rooms_and_keys_in_both_dialects() {
    let (go, core) = tokio::join!(PeerComet::start(Stack::GrpcGo), PeerComet::start(Stack::GrpcCore));
    let (Some(go), Some(core)) = (go, core) else { return };
    let redis = Redis::start().await;
    redis.join("lobby", "conn_1", "user_1", go.address()).await;
    redis.join("lobby", "conn_2", "user_2", core.address()).await;
    for dialect in ["chatroom", "goim"] {
        let before = [&go, &core].map(|comet| comet.calls().len());
        let topic = kafka().topic("peers", 1).await;
        let settings = gateway(&topic).redis(&redis).set("comets", "dialect", quoted(dialect));
        let gateway = settings.node_at(go.address()).node_at(core.address()).start().await;
        let ids = [
            kafka().produce_room(&topic, "lobby", "room").await,
            kafka().produce_keys(&topic, None, &["user_1", "user_2"], "keys").await,
            kafka().produce_everyone(&topic, 0, "all").await,
        ];
        gateway.wait_until_settled(&topic).await;

        for ((comet, connection), before) in [(&go, "conn_1"), (&core, "conn_2")].into_iter().zip(before) {
            // The order of a room, keys and everyone is not defined.
            let mut calls = comet.calls().split_off(before);
            calls.sort_by_key(|call| call.messages.clone());
            let seen: Vec<_> = calls.iter().map(|call| (call.to.clone(), call.deliveries())).collect();
            let of = |body: &'static str| vec![(4, Bytes::from(body))];
            let wanted = [
                (To::Room("lobby".to_owned()), of("room")),
                (To::Keys(vec![connection.to_owned()]), of("keys")),
                (To::Everyone { speed: 0 }, of("all")),
            ];
            assert_eq!(seen, wanted, "{comet:?}");
            let named =
                |(call, id): (&Call, &String)| call.messages.len() == 1 && call.messages[0].starts_with(id);
            assert!(calls.iter().zip(&ids).all(named), "{ids:?}; {comet:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_comets_fail_wait_crash_and_come_back() {
    for stack in [Stack::GrpcGo, Stack::GrpcCore] {
        let Some(comet) = PeerComet::start(stack).await else { continue };
        let rooms =
            async || call(comet.address(), "/goim.comet.Comet/Rooms", chatroom::RoomsReq {}, &["a"]).await;
        rooms().await.expect("OK");
        comet.behave(Duration::ZERO, Some((Code::Unknown, "signal channel full, msg dropped"))).await;
        let refused = rooms().await.expect_err("refused");
        assert_eq!((refused.code(), refused.message()), (Code::Unknown, "signal channel full, msg dropped"));
        comet.behave(Duration::from_secs(60), None).await;
        let hanging = async { rooms().await.expect_err("the connection was cut") };
        let crash = async {
            comet.wait_for(3).await;
            comet.stop();
        };
        tokio::join!(hanging, crash);
        comet.restart().await;
        rooms().await.expect("back on the same port, and kind");
        assert_eq!(comet.calls().len(), 4);
        assert!(comet.calls().iter().all(|call| call.to == To::Rooms && call.messages == ["a"]));
        if stack == Stack::GrpcGo {
            assert_eq!(comet.connections().0, 6, "{comet:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_is_not_librdkafka_writes_any_bytes() {
    if !kafka().can_prove("a_producer_that_is_not_librdkafka_writes_any_bytes") {
        return;
    }
    let topic = kafka().topic("franz", 2).await;
    let Some(producer) = Producer::new(kafka().brokers(), &topic).await else { return };
    let odd = [b"k\xff".as_slice(), b"v\xfe"];
    let records = [
        Outgoing::new(odd[1]).key(odd[0]).header(b"\xfename", b"\xfd").timestamp_ms(1_700_000_000_000),
        Outgoing::new("z").partition(1).zeros(2_000_000).times(3),
    ];
    let written = producer.clone().compression("zstd").batch_bytes(10_000_000).write(&records).await;
    assert_eq!(written.len(), 4);
    let aborted = producer.clone().transaction("peer").abort().compression("gzip");
    aborted.write(&[Outgoing::new("never")]).await;
    let committed = producer.transaction("peer").write(&[Outgoing::new("once")]).await;
    // The end marker of each transaction takes an offset.
    assert_eq!(committed, [Written { partition: 0, offset: 3 }]);

    let all = kafka().read_all(&topic);
    let seen: Vec<_> = all.iter().map(|record| (record.partition, record.offset)).collect();
    assert_eq!(seen, [(0, 0), (0, 3), (1, 0), (1, 1), (1, 2)]);
    let first = &all[0];
    assert_eq!((first.key.as_deref(), first.value.as_deref()), (Some(odd[0]), Some(odd[1])));
    let header = (Bytes::from_static(b"\xfename"), Some(Bytes::from_static(b"\xfd")));
    assert_eq!(first.headers, [header]);
    assert_eq!(first.timestamp_ms, Some(1_700_000_000_000));
    assert_eq!(all[1].value.as_deref(), Some(b"once".as_slice()));
    assert_eq!(all[4].value.as_ref().map(Bytes::len), Some(2_000_001));
}
