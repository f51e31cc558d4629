//! Requests are what the generated types would encode, byte for byte.

use super::super::proto::goim;
use super::*;
use proptest::prelude::*;
use prost::Message as _;

fn payload(dialect: Dialect, operation: i32, body: &Bytes) -> Payload {
    Payload::new(dialect, &Content { operation, body, sent_ms: 0, trace: None, replayed: false })
}

/// The frame of a payload in goim's dialect.
fn frame_of(payload: &Payload) -> &[u8] {
    let proto = payload.proto();
    &proto[proto.len() - payload.frame_len()..]
}

#[test]
fn a_goim_frame_is_identical_to_goim_s() {
    let payload = payload(Dialect::Goim, 5, &Bytes::from_static(b"hi"));
    let frame = b"\0\0\0\x12\0\x10\0\x01\0\0\0\x05\0\0\0\0hi";
    assert_eq!(frame_of(&payload), frame);
    assert_eq!(payload.frame_len(), frame.len());
    let request = Dialect::Goim.request(&CallTarget::Room("r".into()), &payload);
    let proto = goim::Proto { ver: 1, op: 9, seq: 0, body: Bytes::from_static(frame) };
    let expected = goim::BroadcastRoomReq { room_id: "r".into(), proto: Some(proto) };
    assert_eq!(request.body.message(), expected.encode_to_vec());
    assert_eq!(request.path, "/goim.comet.Comet/BroadcastRoom");
}

#[test]
fn the_calls_of_a_large_message_share_its_bytes() {
    let payload = payload(Dialect::Goim, 5, &vec![b'x'; SHARED_FROM].into());
    let targets = [
        CallTarget::Room("r".into()),
        CallTarget::Room("other".into()),
        CallTarget::Connections(vec!["c".into()]),
        CallTarget::Everyone { speed: 1 },
    ];
    for target in targets {
        let request = Dialect::Goim.request(&target, &payload);
        let is_shared = |piece: &Bytes| piece.as_ptr() == payload.proto().as_ptr();
        assert!(request.body.pieces().any(is_shared), "{target:?}");
    }
}

#[test]
fn merged_frames_are_concatenated() {
    for times in [1, 2 * SHARED_FRAMES_FROM] {
        let of = |text: &str| payload(Dialect::Goim, 4, &text.repeat(times).into());
        let (a, b) = (of("a"), of("bc"));
        let frames = [frames([&a].into_iter()), frames([&b].into_iter())];
        let request = Dialect::Goim.merged(&"r".into(), frames.clone().into());
        let decoded = goim::BroadcastRoomReq::decode(request.body.message()).expect("decodes");
        let proto = decoded.proto.expect("a proto");
        assert_eq!((proto.op, proto.body), (9, [frame_of(&a), frame_of(&b)].concat().into()));
        let is_shared = |frames: &Bytes| request.body.pieces().any(|piece| piece.as_ptr() == frames.as_ptr());
        assert_eq!(frames.iter().all(is_shared), times > 1, "long ones are shared");
    }
}

#[test]
fn a_payload_serves_any_room() {
    let payload = payload(Dialect::Chatroom, 1, &Bytes::from_static(b"x"));
    for name in ["one", "two", "one"] {
        let request = Dialect::Chatroom.request(&CallTarget::Room(name.into()), &payload);
        assert_eq!(goim::BroadcastRoomReq::decode(request.body.message()).expect("decodes").room_id, name);
    }
}

proptest! {
    /// Against the generated types: the same bytes in every case.
    #[test]
    fn requests_are_what_prost_would_write(
        operation: i32, speed: i32, body in proptest::collection::vec(any::<u8>(), 0..300),
        times in prop_oneof![Just(1), Just(200)],
        keys in proptest::collection::vec("[a-z0-9]{0,200}", 0..5)
    ) {
        let body = Bytes::from(body.repeat(times));
        let payload = payload(Dialect::Chatroom, operation, &body);
        prop_assert!(payload.len() >= payload.proto().len());
        let encode = |target: CallTarget| Dialect::Chatroom.request(&target, &payload).body.message();
        let proto = Some(goim::Proto { ver: 1, op: operation, seq: 0, body });

        let push = goim::PushMsgReq { keys: keys.clone(), proto: proto.clone(), proto_op: operation };
        let ids = keys.iter().map(|key| key.as_str().into()).collect();
        prop_assert_eq!(encode(CallTarget::Connections(ids)), push.encode_to_vec());

        let everyone = goim::BroadcastReq { proto_op: operation, proto: proto.clone(), speed };
        prop_assert_eq!(encode(CallTarget::Everyone { speed }), everyone.encode_to_vec());

        let room_id = keys.first().cloned().unwrap_or_default();
        let room = goim::BroadcastRoomReq { room_id: room_id.clone(), proto };
        prop_assert_eq!(encode(CallTarget::Room(room_id.into())), room.encode_to_vec());
    }
}
