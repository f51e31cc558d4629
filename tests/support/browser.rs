//! The example comet's browsers, and where the examples are.

use std::path::PathBuf;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::PATIENCE;

/// `cargo test` builds the examples next to the binary.
pub fn example(name: &str) -> String {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_halley"));
    let example = binary.with_file_name("examples").join(name);
    assert!(example.exists(), "{} is not built: cargo build --examples", example.display());
    example.display().to_string()
}

/// A minimal WebSocket client: small text frames from the server.
pub struct Browser {
    stream: BufReader<TcpStream>,
}

impl Browser {
    /// A user enters a room.
    pub async fn enter(address: &str, room: &str, user: &str) -> Self {
        let mut stream = BufReader::new(TcpStream::connect(address).await.expect("connects"));
        let request = format!(
            "GET /ws?room={room}&user={user} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Self { stream }
    }

    /// The next text frame; pings are skipped.
    pub async fn next(&mut self) -> Value {
        let frame = async {
            loop {
                let kind = self.stream.read_u8().await.expect("a frame") & 0x0f;
                let length = match self.stream.read_u8().await.expect("a length") {
                    126 => usize::from(self.stream.read_u16().await.expect("a length")),
                    short => usize::from(short),
                };
                let mut payload = vec![0; length];
                self.stream.read_exact(&mut payload).await.expect("a payload");
                if kind == 1 {
                    return serde_json::from_slice(&payload).expect("JSON");
                }
            }
        };
        tokio::time::timeout(PATIENCE, frame).await.expect("a frame in time")
    }
}
