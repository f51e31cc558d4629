//! A minimal HTTP client for tests of the admin interface: one request per connection, read to its
//! end.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.body))
    }
}

/// GETs a path; `Err` is the reason for a missing response.
pub async fn get(address: &str, path: &str) -> Result<Answer, String> {
    send(address, "GET", path, &[], b"").await
}

/// Sends a request; `Err` is the reason for a missing response. The address is `host:port` or
/// `unix:PATH`.
pub async fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer, String> {
    let what = format!("{method} http://{address}{path}");
    let request = request(address, method, path, headers, body);
    let exchange = async {
        match address.strip_prefix("unix:") {
            Some(path) => exchange(UnixStream::connect(path).await?, &request, body).await,
            None => exchange(TcpStream::connect(address).await?, &request, body).await,
        }
    };
    let text = match tokio::time::timeout(Duration::from_secs(10), exchange).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => return Err(format!("{what}: {error}")),
        Err(_) => return Err(format!("{what}: no answer within 10 s")),
    };
    parse(&text).ok_or_else(|| format!("{what}: not HTTP: {text}"))
}

/// The head of a request.
fn request(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
    // HTTP/1.0: the response is not chunked and ends with the connection.
    let mut request = format!("{method} {path} HTTP/1.0\r\n");
    let named = |name: &str| headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    if !named("host") {
        let host = if address.starts_with("unix:") { "localhost" } else { address };
        request += &format!("Host: {host}\r\n");
    }
    if !named("content-length") {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    format!("{request}Connection: close\r\n\r\n")
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    body: &[u8],
) -> std::io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    // A request that is refused early may break the write; the response counts.
    let sent = stream.write_all(body).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    if answer.is_empty() {
        sent?;
        read?;
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
