//! Inboxes over gRPC, with the client that comets generate.

use halley::api::proto::inbox::inbox_client::InboxClient;
use halley::api::proto::inbox::{
    AcknowledgeRequest, Owner, Page, PositionRequest, ReadRequest, ReplayRequest, owner,
};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{api_of, miss, numbers, with_api};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually_eq};

async fn client(api: &str) -> InboxClient<Channel> {
    let channel = Channel::from_shared(format!("http://{api}")).expect("a URI").connect().await;
    InboxClient::new(channel.expect("the API listens"))
}

fn user(user: &str) -> Option<Owner> {
    Some(Owner { owner: Some(owner::Owner::User(user.into())) })
}

fn bodies(page: &Page) -> Vec<String> {
    let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    page.entries.iter().map(|entry| text(&entry.body)).collect()
}

/// The next page of a stream.
async fn next(pages: &mut Streaming<Page>) -> Option<Page> {
    let page = tokio::time::timeout(PATIENCE, pages.message()).await.expect("a page, or the end, in time");
    page.expect("no error")
}

#[tokio::test]
async fn a_comet_reads_replays_and_acknowledges() {
    let redis = Redis::start().await;
    let (topic, settings) = with_api("inbox-grpc", &redis).await;
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    miss(&topic, &gateway, "ann", 0..10).await;
    let mut inbox = client(&api).await;

    let read = ReadRequest { owner: user("ann"), limit: 4, ..ReadRequest::default() };
    let page = inbox.read(read.clone()).await.expect("a page").into_inner();
    assert_eq!((bodies(&page), page.more, page.truncated), (numbers(0..4), true, false));
    let device = "phone".to_owned();
    let ack = AcknowledgeRequest { owner: user("ann"), device: device.clone(), cursor: page.next.clone() };
    let standing = inbox.acknowledge(ack).await.expect("stored").into_inner();
    assert_eq!((&standing.acknowledged, standing.kept), (&page.next, 10));
    let position = PositionRequest { owner: user("ann"), device: device.clone() };
    assert_eq!(inbox.position(position).await.expect("a position").into_inner(), standing);

    // From what the device has acknowledged to the end.
    let replay = ReplayRequest { owner: user("ann"), device, page: 4, ..ReplayRequest::default() };
    let mut pages = inbox.replay(replay.clone()).await.expect("a stream").into_inner();
    let (first, second) = (next(&mut pages).await.expect("a page"), next(&mut pages).await.expect("a page"));
    assert_eq!((bodies(&first), bodies(&second)), (numbers(4..8), numbers(8..10)));
    assert_eq!((first.more, second.more, next(&mut pages).await), (true, false, None));

    // And on, with what is stored later.
    let follow = ReplayRequest { follow: true, after: Some(second.next.clone()), ..replay };
    let mut pages = inbox.replay(follow).await.expect("a stream").into_inner();
    assert_eq!(bodies(&next(&mut pages).await.expect("a page")), [""; 0], "it has caught up");
    miss(&topic, &gateway, "ann", 10..13).await;
    let mut later = Vec::new();
    while later.len() < 3 {
        later.extend(bodies(&next(&mut pages).await.expect("a page")));
    }
    assert_eq!(later, numbers(10..13));
    let open = async || gateway.metric("halley_inbox_replay_streams").await;
    assert_eq!(open().await, Some(1.0));
    drop(pages);
    eventually_eq("open streams", Some(0.0), open).await;

    for (request, said) in [
        (ReadRequest { after: "x".into(), ..read.clone() }, "`after`"),
        (ReadRequest { owner: user("bob"), after: second.next, ..read.clone() }, "another inbox"),
        (ReadRequest { owner: None, ..read.clone() }, "`owner`"),
    ] {
        let refused = inbox.read(request).await.expect_err(said);
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(said), "{refused:?}");
    }
    let room = Some(Owner { owner: Some(owner::Owner::Room("lobby".into())) });
    let history = inbox.read(ReadRequest { owner: room.clone(), ..read }).await.expect("a page").into_inner();
    assert_eq!((history.entries.len(), history.more, history.truncated), (0, false, false));
    let replay = ReplayRequest { owner: room, ..ReplayRequest::default() };
    let refused = inbox.replay(replay).await.expect_err("users are replayed to");
    assert_eq!(refused.code(), Code::Unimplemented);
}

/// What `grpcurl list` and `describe` ask.
#[tokio::test]
async fn reflection_describes_the_service() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let redis = Redis::start().await;
    let (_, settings) = with_api("inbox-reflection", &redis).await;
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    let channel = Channel::from_shared(format!("http://{api}")).expect("a URI").connect().await;
    let mut reflection = ServerReflectionClient::new(channel.expect("the API listens"));
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let service = "halley.inbox.v1.Inbox";
    let asked = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(service.to_owned())),
    ];
    let answers = reflection.server_reflection_info(futures_util::stream::iter(asked)).await;
    let mut answers = answers.expect("it is served").into_inner();
    let mut next = async || {
        let answer: Option<ServerReflectionResponse> = answers.message().await.expect("an answer");
        answer.and_then(|answer| answer.message_response)
    };
    let Some(MessageResponse::ListServicesResponse(list)) = next().await else { panic!("no list") };
    assert!(list.service.iter().any(|listed| listed.name == service), "{list:?}");
    let Some(MessageResponse::FileDescriptorResponse(file)) = next().await else { panic!("no file") };
    let names = file.file_descriptor_proto.concat();
    let contains = |name: &str| names.windows(name.len()).any(|part| part == name.as_bytes());
    assert!(["Position", "Read", "Replay", "Acknowledge"].into_iter().all(contains));
}
