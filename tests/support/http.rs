//! The smallest HTTP client that the admin interface can be tested with: one GET, one
//! connection, read to its end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.body))
    }
}

/// GETs a path; `Err` says why there was no answer.
pub async fn get(address: &str, path: &str) -> Result<Answer, String> {
    let exchange = tokio::time::timeout(Duration::from_secs(10), exchange(address, path));
    let text = match exchange.await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => return Err(format!("GET http://{address}{path}: {error}")),
        Err(_) => return Err(format!("GET http://{address}{path}: no answer within 10 s")),
    };
    parse(&text).ok_or_else(|| format!("GET http://{address}{path}: not HTTP: {text}"))
}

async fn exchange(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}
