//! A Redis that accepts every client and then sends without end.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Answers the first reads of each connection with `+OK`, and all later ones with a reply that never
/// ends.
pub struct HostileRedis {
    url: String,
    _server: JoinSet<()>,
}

impl HostileRedis {
    /// Starts it: a reply is `head` followed by endless 'a's.
    pub async fn start(head: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("redis://{}", listener.local_addr().expect("bound"));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, head));
            }
        });
        Self { url, _server: server }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }
}

async fn serve(mut stream: TcpStream, head: &str) -> Option<()> {
    let mut asked = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut asked).await.ok().filter(|length| *length > 0)?;
        let asked = String::from_utf8_lossy(&asked[..length]).to_ascii_uppercase();
        if asked.contains("CLIENT\r\n") || asked.contains("SELECT\r\n") {
            // The commands that every client sends on connect.
            let commands = asked.matches("SETINFO").count().max(1);
            stream.write_all("+OK\r\n".repeat(commands).as_bytes()).await.ok()?;
            continue;
        }
        stream.write_all(head.as_bytes()).await.ok()?;
        let endless: Arc<[u8]> = vec![b'a'; 64 * 1024].into();
        loop {
            stream.write_all(&endless).await.ok()?;
        }
    }
}
