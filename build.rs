//! Generates code from the protos (with protox, so that no `protoc` is needed) and exports the git
//! revision.

use std::path::Path;
use std::process::Command;

const PROTOS: [&str; 5] =
    ["push.proto", "comet_chatroom.proto", "comet_goim.proto", "delivery.proto", "archive.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // Naming a missing file (in a tarball or a git worktree) would rebuild every time.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    // Packages and images are built without git.
    println!("cargo:rerun-if-env-changed=HALLEY_REVISION");
    let revision = std::env::var("HALLEY_REVISION").ok().filter(|named| !named.is_empty());
    println!("cargo:rustc-env=HALLEY_REVISION={}", revision.unwrap_or_else(git_revision));

    let files = protox::compile(PROTOS, ["proto"])?;
    // Only the server side of comets is generated: the gateway calls them with a codec that sends
    // pre-encoded bytes.
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(false)
        .build_transport(false)
        .compile_fds(files)?;

    // The API: the gateway serves it, tests and the example comet call it, and reflection describes it.
    let inbox = protox::compile(["inbox.proto"], ["proto"])?;
    let descriptors = protox::prost::Message::encode_to_vec(&inbox);
    let folder = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(Path::new(&folder).join("inbox.bin"), descriptors)?;
    // Its answers are also the JSON of the HTTP API.
    let mut api = tonic_prost_build::configure().bytes(".").build_transport(false);
    for message in ["Page", "Entry", "PositionReply"] {
        api = api.message_attribute(format!("halley.inbox.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    for (field, attribute) in [
        ("Page.warning", "skip_serializing_if = \"String::is_empty\""),
        ("Entry.room", "serialize_with = \"crate::api::view::or_null\""),
        ("Entry.body", "serialize_with = \"crate::api::view::base64\""),
        ("Entry.missing", "skip_serializing_if = \"std::ops::Not::not\""),
    ] {
        api = api.field_attribute(format!("halley.inbox.v1.{field}"), format!("#[serde({attribute})]"));
    }
    api.compile_fds(inbox)?;
    Ok(())
}

fn git_revision() -> String {
    let described = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
