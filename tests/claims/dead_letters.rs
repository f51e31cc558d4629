//! Forged dead letters: they are listed and refused like any others.

use crate::dead_letters::{DeadLetterCli, text};
use crate::support::kafka::kafka;

fn is_harmless(text: &str) -> bool {
    !text.contains(|c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2028}".contains(c)))
}

#[tokio::test]
async fn hostile_letters_neither_crash_nor_flood_the_commands() {
    let desk = DeadLetterCli::new("hostile").await;
    let (topic, dead_letters) = (desk.topic.clone(), desk.dead_letters.clone());
    let huge = "x\u{1b}[2J\n".repeat(100_000);
    let usual =
        [("halley-origin-topic", &*topic), ("halley-origin-partition", "0"), ("halley-stage", "deliver")];
    let letter = async |more: &[(&str, &str)]| {
        kafka()
            .produce_record(&dead_letters, Some("key"), Some(b"value"), &[&usual[..], more].concat())
            .await;
    };
    letter(&[("halley-reason", &huge)]).await;
    letter(&[("halley-attempts", "\u{202e}many"), ("halley-plugin", "p\r\n\u{9b}1m")]).await;
    letter(&[("halley-attempts", "4294967295"), ("halley-origin-timestamp", "99999999999999999999")]).await;
    letter(&[("halley-origin-timestamp", "-9223372036854775808"), ("halley-origin-offset", "-1")]).await;
    letter(&[("halley-failed-comets", &",".repeat(300_000)), ("halley-message-id", "an id?\n")]).await;
    letter(&vec![("halley-message-id", "push/0/1"); 5_000]).await;
    let odd: [(&[u8], &[u8]); 4] = [
        (b"halley-origin-topic", b"\xff\xfe\x1b[2J"),
        (b"halley-stage", b"\xff\x00"),
        (b"\xff\x1b", b"\xff"),
        (b"halley-value-left-out", b"\x1b]0;title\x07"),
    ];
    kafka().produce_raw(&dead_letters, None, None, &odd, None).await;

    let listed = desk.ok(&["list"]);
    assert!(is_harmless(&listed) && listed.len() < 20_000, "{} bytes: {listed}", listed.len());
    assert!(listed.contains("6 deliver, 1 without a known stage"), "{listed}");
    let lines = desk.ok(&["list", "--json"]);
    assert!(
        is_harmless(&lines)
            && lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    );
    assert_eq!(lines.lines().count(), 7);
    for args in [&["redrive", "--dry-run"][..], &["redrive"]] {
        let output = desk.run(args);
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "one is refused: {output:?}");
        assert!(is_harmless(&out) && is_harmless(&said), "{out}\n{said}");
        assert!(out.len() + said.len() < 40_000, "{out}\n{said}");
        assert!(out.contains("6 redriven") | out.contains("6 would be redriven"), "{out}\n{said}");
    }
    assert_eq!(kafka().read_all(&topic).len(), 6);
}

#[tokio::test]
async fn many_refused_letters_make_few_lines() {
    let desk = DeadLetterCli::new("many-refused").await;
    let value = [0_u8; 4];
    for number in 0..150 {
        let origin = format!("elsewhere-{number}");
        let headers = [("halley-origin-topic", &*origin), ("halley-stage", "deliver")];
        kafka().produce_record(&desk.dead_letters, None, Some(&value), &headers).await;
    }
    let output = desk.run(&["redrive"]);
    let said = text(&output.stderr);
    assert!(text(&output.stdout).contains("150 refused"), "{output:?}");
    assert!(said.lines().count() < 110 && said.contains("further refusals are only counted"), "{said}");
}
