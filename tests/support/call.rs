//! A single gRPC call like the gateway's, to test comets.

use halley::comets::proto::chatroom;
use halley::message::MESSAGE_ID;
use tonic::Status;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

/// One unary call on its own connection.
pub async fn call<R>(
    address: impl std::fmt::Display,
    path: &'static str,
    request: R,
    messages: &[&str],
) -> Result<(), Status>
where
    R: prost::Message + 'static,
{
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = tonic::Request::new(request);
    for id in messages {
        request.metadata_mut().append(MESSAGE_ID, id.parse().expect("printable"));
    }
    // Every reply is an empty message, or can be read as one.
    let codec = tonic_prost::ProstCodec::<R, chatroom::BroadcastRoomReply>::default();
    client.unary(request, PathAndQuery::from_static(path), codec).await.map(drop)
}
