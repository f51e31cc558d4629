//! What a user missed, from the gateway's API (`proto/inbox.proto`).
//!
//! The order matters, and is all that a comet has to get right:
//!
//! 1. Register the connection in the directory, and wait for Redis' answer. From now on, the gateway
//!    delivers live.
//! 2. Replay the inbox from what the device has acknowledged. Hold live messages of this connection
//!    meanwhile.
//! 3. Show what was held, without what the replay has shown already: a message that was stored while the
//!    user returned comes both ways, with the same id.
//! 4. Acknowledge what was shown.
//!
//! The gateway does it the other way round: it stores first and then looks who is registered. So one of
//! the two sees the other, and nothing falls between.

use halley::api::proto::inbox::inbox_client::InboxClient;
use halley::api::proto::inbox::{AcknowledgeRequest, Owner, Page, ReplayRequest, owner};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Entries per page: what one page of a browser shows at once.
const PAGE: u32 = 100;

/// The inboxes of all users.
pub(crate) struct Inboxes {
    client: InboxClient<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

impl Inboxes {
    /// Inboxes behind the API at this URL. It connects on first use.
    pub(crate) fn new(url: String, token: Option<&str>) -> anyhow::Result<Self> {
        let client = InboxClient::new(Endpoint::from_shared(url)?.connect_lazy());
        let token = token.map(|token| format!("Bearer {token}").parse()).transpose()?;
        Ok(Self { client, token })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// Everything that this device of a user has not acknowledged, page by page.
    pub(crate) async fn replay(
        &self,
        user: &str,
        device: &str,
        connection: &str,
    ) -> Result<Streaming<Page>, Status> {
        let replay = ReplayRequest {
            owner: owner_of(user),
            device: device.to_owned(),
            connection: connection.to_owned(),
            page: PAGE,
            ..ReplayRequest::default()
        };
        Ok(self.client.clone().replay(self.request(replay)).await?.into_inner())
    }

    /// The device has shown everything up to this cursor.
    pub(crate) async fn acknowledge(&self, user: &str, device: &str, cursor: String) -> Result<(), Status> {
        let ack = AcknowledgeRequest { owner: owner_of(user), device: device.to_owned(), cursor };
        self.client.clone().acknowledge(self.request(ack)).await.map(drop)
    }
}

fn owner_of(user: &str) -> Option<Owner> {
    Some(Owner { owner: Some(owner::Owner::User(user.to_owned())) })
}
