//! `halley check`: reports mistakes with location and remedy before anything starts; with `--connect`
//! also what is missing around the gateway.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::certificates::{Certificate, EXPIRED, LONG, VALID};
use crate::support::collector::Collector;
use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::registry::Registry;
use crate::support::{folder, free_port, repository, secret, unique};
use crate::tls::in_front_of;

/// Runs `halley` with these arguments and variables in this folder.
fn halley(folder: &std::path::Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
    let command = command.args(args).envs(environment.iter().copied()).current_dir(folder);
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit code and both outputs of `check` for this configuration.
fn check(toml: &str, args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = folder("checks");
    // One case uses it as the token file.
    secret(&folder.path().join("halley.toml"), toml);
    let checked = halley(folder.path(), &[&["check"], args].concat(), environment);
    (checked.status.code(), format!("{}{}", text(&checked.stdout), text(&checked.stderr)))
}

/// A mistaken configuration, and the expected message.
const MISTAKES: &[(&str, &str)] = &[
    ("[kafka]\nbrokers = \"http://localhost:9092\"", "`http://localhost:9092` has a scheme"),
    ("[kafka]\ndead_letter_topic = \"\"", "`kafka.dead_letter_topic` is empty"),
    ("[kafka]\ndead_letter_topic = \"dead letters\"", "`dead letters` is not a valid topic name"),
    ("[kafka]\ntopics = [\"^push[\"]", "`kafka.topics` [\"^push[\"]"),
    ("[kafka]\ngroup = \"\"", "`kafka.group` is empty"),
    ("[kafka]\nsession_timeout = \"1ms\"", "`kafka.session_timeout` must be 1s to 300s"),
    ("[policies]\ndirectory = 5\nstate_dir = \"state\"", "`policies.directory` is `5`; expected a string"),
    ("[policies]\ndirectory = \"missing\"", "[policies] directory missing cannot be read"),
    (
        "[admin]\nlisten = \"0.0.0.0:9093\"\n[api]\nlisten = \"127.0.0.1:9093\"",
        "`api.listen` is `127.0.0.1:9093`, which `admin.listen` (`0.0.0.0:9093`) takes already",
    ),
    (
        "[admin]\nprobe_listen = \"localhost:9093\"",
        "`admin.probe_listen` is `localhost:9093`, which `admin.listen` (`127.0.0.1:9093`) takes already",
    ),
    (
        "[kafka.properties]\n\"max.poll.interval.ms\" = \"1000\"",
        "`max.poll.interval.ms`must be >= `session.timeout.ms`",
    ),
    (
        "[kafka.properties]\n\"group.protocol\" = \"consumer\"\n\"partition.assignment.strategy\" = \"range\"",
        "`partition.assignment.strategy` is not supported for `group.protocol=consumer`",
    ),
    (
        "[kafka.properties]\n\"group.protocol\" = \"consumer\"\n\"heartbeat.interval.ms\" = \"1000\"",
        "`heartbeat.interval.ms` is not supported for `group.protocol=consumer`. It is defined broker side",
    ),
    (
        "[kafka.properties]\n\"group.protocol\" = \"consumer\"\n\"group.protocol.type\" = \"consumer\"",
        "`group.protocol.type` is not supported for `group.protocol=consumer`",
    ),
    ("[kafka.properties]\n\"max.in.flight\" = \"10\"", "max.in.flight"),
    ("[kafka.properties]\n\"sasl.passwrod\" = \"hunter2\"", "librdkafka knows no property `sasl.passwrod`"),
    ("[kafka.properties]\n\"security.protocol\" = \"hunter2\"", "`security.protocol` has an invalid value"),
    ("[kafka.properties]\n\"sasl.password\" = \"hunter2\nx\"", "is not valid TOML: line "),
    ("[kafka.properties]\n\"sasl.password\" = { a = \"hunter2\" }", "halley.toml:2"),
    ("[redis]\nurl = \"redis://u:hunter2@h:x\"", "[redis] url is invalid"),
    ("[comets]\nnodes = [\"ftp://comet:50051\"]", "`comets.nodes`"),
    ("[comets.tls]\ncertificate = \"gateway.pem\"", "`comets.tls.key` need each other"),
    (
        "[admin.tls]\ncertificate = \"halley.toml\"\nkey = \"halley.toml\"",
        "halley.toml cannot be used: the file of `admin.tls.certificate` has no certificate in PEM",
    ),
    ("[comets.tls]\nca = \"missing.pem\"", "`comets.tls.ca` "),
    ("[admin.tls]\ncertificate = \"gateway.pem\"", "`admin.tls.key` need each other"),
    ("[api.tls]\nclient_ca = \"clients.pem\"", "`api.tls.client_ca` needs `api.tls.certificate`"),
    (
        "[traces]\nendpoint = \"127.0.0.1:4318\"",
        "`traces.endpoint` is `127.0.0.1:4318`; expected an http or https",
    ),
    ("[traces]\nheaders_file = \"halley.toml\"", "`traces.headers_file`"),
    ("[policies]\nstate_dir = \"halley.toml/state\"", "`policies.state_dir`"),
    ("[admin]\ntoken_file = \"nowhere\"", "nowhere cannot be read"),
    ("[admin]\ntoken_file = \"halley.toml\"", "one token is one word without spaces"),
    (
        "[api]\nlisten = \"127.0.0.1:9094\"\ntoken_file = \"halley.toml\"",
        "`[api] token_file`: line 1: unknown field `api`, expected `token`",
    ),
    ("[log]\nlevel = \"x\"", "`log.level`"),
    ("[admin]\nlisten = \"9093\"", "`admin.listen` is `9093`"),
];

#[test]
fn settings_of_plugins_are_checked_key_by_key() {
    let path =
        |name: &str| repository("plugins/dist").join(name).with_extension("wasm").display().to_string();
    let (words, rules) = (path("keyword_filter"), path("offline_rules"));
    let with = |mask: &str, action: &str| {
        format!(
            "[[plugin]]\nname = \"words\"\npath = \"{words}\"\n[plugin.config]\nwords = [\"spam\"]\n{mask}\n\
             [[plugin]]\nname = \"rules\"\npath = \"{rules}\"\n[[plugin.config.rules]]\naction = \"{action}\"\n"
        )
    };
    let (code, said) = check(&with("mask = \"**\"\nmaks = \"*\"", "keep"), &[], &[]);
    assert_eq!(code, Some(2), "{said}");
    for violation in [
        "plugin `words` (",
        "config.mask: must have at most 1 characters, and is \"**\"",
        "config.maks: unknown key; the keys are `action`, `ignore_case`, `mask`,",
        "plugin `rules` (",
        "config.rules[0].action: expected one of `store`, `notify`, `drop`, and is \"keep\"",
        "halley.toml:6: plugin `words`",
        "halley.toml:7: plugin `words`",
        "halley.toml:12: plugin `rules`",
        "3 mistakes found",
    ] {
        assert!(said.contains(violation), "`{violation}` is not in\n{said}");
    }
    // A mistake in another key hides no setting.
    let (_, said) =
        check(&with("mask = \"**\"", "drop").replace("name = \"words\"", "name = \"w w\""), &[], &[]);
    assert!(said.contains("config.mask: must have") && said.contains("2 mistakes found"), "{said}");
    let (code, said) = check(&with("mask = \"*\"", "drop"), &[], &[]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn every_mistake_is_named_before_anything_starts() {
    for (toml, expected) in MISTAKES {
        let (code, said) = check(toml, &[], &[]);
        assert_eq!(code, Some(2), "{toml}\n{said}");
        assert!(
            said.contains(expected) && said.contains("1 mistake found in ./halley.toml"),
            "{toml}\n{said}"
        );
        let line =
            said.split_once("halley.toml:").and_then(|(_, rest)| rest.split_once(": ")?.0.parse().ok());
        assert!(line.is_some_and(|line: usize| line <= toml.lines().count()), "no line: {toml}\n{said}");
        assert!(!said.contains("hunter2"), "{toml}\n{said}");
    }
    let (code, said) = check("", &[], &[("HALLEY_ADMIN_TOKEN", "short")]);
    assert!(
        code == Some(2)
            && said.contains("environment variable HALLEY_ADMIN_TOKEN: HALLEY_ADMIN_TOKEN has fewer than 16"),
        "{said}"
    );
    let (code, said) =
        check("", &[], &[("HALLEY__KAFKA__PROPERTIES", "{ \"sasl.passwrod\" = \"hunter2\" }")]);
    assert!(code == Some(2) && said.contains("sasl.passwrod") && !said.contains("hunter2"), "{said}");
}

#[test]
fn probable_mistakes_are_reported_as_warnings() {
    for (toml, environment, expected) in [
        ("[kafka]\nsession_timeout = \"1s\"", None, "group.min.session.timeout.ms"),
        (
            "[kafka]\ninstance_id = \"a\"\nproperties = { \"group.protocol\" = \"consumer\" }",
            None,
            "is refused under that name until the brokers' session of it has ended",
        ),
        ("[delivery]\nmax_in_flight_bytes = \"256\"", None, "is 256 bytes"),
        ("[admin]\nprotect_metrics = true", None, "`admin.protect_metrics` protects nothing"),
        ("[archive]\nurl = \"mysql://halley:x@db/halley\"", None, "`archive.url` does not require TLS"),
        (
            "[admin]\nlisten = \"0.0.0.0:9093\"",
            Some(("HALLEY_ADMIN_TOKEN", "0123456789abcdef")),
            "tokens travel in the clear",
        ),
        ("", Some(("HALLEY_KAFKA_GROUP", "g")), "HALLEY_KAFKA_GROUP: is ignored; write HALLEY__KAFKA__GROUP"),
    ] {
        let (code, said) = check(toml, &[], environment.as_slice());
        assert!(
            code == Some(0) && said.contains("halley: warning: ") && said.contains(expected),
            "{toml}\n{said}"
        );
    }
}

#[test]
fn a_secret_in_a_file_that_others_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder("checks");
    let file = folder.path().join("halley.toml");
    secret(&file, "\n[redis]\nurl = \"redis://halley:hunter2@127.0.0.1\"\n");
    let said = || {
        let checked = halley(folder.path(), &["check"], &[]);
        assert!(checked.status.success(), "{checked:?}");
        text(&checked.stderr)
    };
    assert_eq!(said(), "");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("a mode");
    let warned = said();
    let expected = "warning: halley.toml:3: `redis.url` is a secret, and the file is readable by all users";
    assert!(warned.contains(expected) && !warned.contains("hunter2"), "{warned}");
    std::fs::write(&file, "[redis]\nurl = \"redis://127.0.0.1\"").expect("written");
    assert_eq!(said(), "", "nothing secret is in it");
}

#[test]
fn a_group_of_the_next_generation_is_valid() {
    let toml = "[kafka.properties]\n\"group.protocol\" = \"consumer\"";
    assert_eq!(check(toml, &[], &[]).0, Some(0));
}

#[test]
fn check_says_which_file_it_saw() {
    let folder = folder("checks");
    let said = |args: &[&str], environment: &[(&str, &str)]| {
        let checked = halley(folder.path(), &[&["check"], args].concat(), environment);
        text(&checked.stdout)
    };
    assert!(said(&[], &[]).starts_with("configuration (defaults and environment only)"));
    std::fs::write(folder.path().join("halley.toml"), "").expect("written");
    std::fs::write(folder.path().join("other.toml"), "").expect("written");
    assert!(said(&[], &[]).starts_with("configuration (./halley.toml)"));
    assert!(said(&[], &[("HALLEY_CONFIG", "other.toml")]).starts_with("configuration (other.toml)"));
    let named = said(&["--config", "halley.toml"], &[("HALLEY_CONFIG", "other.toml")]);
    assert!(named.starts_with("configuration (halley.toml)"), "{named}");
}

#[test]
fn no_mistake_hides_another_in_a_plugin() {
    let toml = "[[plugin]]\nname = \"a b\"\npath = \"missing.wasm\"\nmemory = \"1B\"\n\
                [[plugin]]\nname = \"c\"\npath = \"missing.wasm\"\non_error = \"explode\"\n\
                [[plugin]]\nname = \"c\"\npath = \"gone.wasm\"\n";
    let (code, said) = check(toml, &["--json"], &[]);
    assert_eq!(code, Some(2), "{said}");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let mistakes = report["mistakes"].as_array().expect("a list");
    for (line, key, text) in [
        (2, json!(["plugin", "0", "name"]), "`name` must be 1 to 64 letters"),
        (3, json!(["plugin", "0", "path"]), "cannot be read"),
        (4, json!(["plugin", "0", "memory"]), "`memory` must be 64KiB"),
        (7, json!(["plugin", "1", "path"]), "cannot be read"),
        (8, json!(["plugin", "1", "on_error"]), "`on_error` of plugin `c` is \"explode\"; expected `pass`"),
        (10, json!(["plugin", "2", "name"]), "has the name of an earlier plugin"),
        (11, json!(["plugin", "2", "path"]), "cannot be read"),
    ] {
        let is_it = |it: &&Value| {
            it["line"] == line && it["key"] == key && it["text"].as_str().is_some_and(|it| it.contains(text))
        };
        assert_eq!(mistakes.iter().filter(is_it).count(), 1, "{line}: {text}: {report:#}");
    }
    assert_eq!(mistakes.len(), 7, "{report:#}");
}

#[test]
fn an_archive_without_a_database_is_a_warning() {
    let (code, said) = check("[archive]\nenabled = true", &[], &[]);
    let expected = "halley.toml:2: `archive.enabled` is true, but `archive.url` is not set";
    assert!(code == Some(0) && said.contains(expected), "{said}");
}

#[test]
fn check_prints_json() {
    let (code, said) = check("[kafka]\ngroop = 1\nsession_timeout = \"1s\"", &["--json"], &[]);
    assert_eq!(code, Some(2));
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let mistake = &report["mistakes"][0];
    assert_eq!((&report["file"], &mistake["place"]), (&"./halley.toml".into(), &"halley.toml:2".into()));
    assert!(mistake["text"].as_str().is_some_and(|text| text.contains("groop")), "{report}");
    assert_eq!(report["warnings"].as_array().map(Vec::len), Some(1), "{report}");
}

/// The result of `check --connect` for these settings.
pub async fn connect(settings: Gateway) -> (Option<i32>, Vec<(String, bool, String)>) {
    let toml = settings.toml();
    let run = move || check(&toml, &["--connect", "--json"], &[]);
    let (code, said) = tokio::task::spawn_blocking(run).await.expect("it does not panic");
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    let connections = report["connections"].as_array().unwrap_or_else(|| panic!("{said}"));
    let own = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let read = |it: &Value| (own(&it["subject"]), it["ok"] == true, own(&it["text"]));
    (code, connections.iter().map(read).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_finds_what_is_missing_around_the_gateway() {
    if !kafka().can_prove("connecting_finds_what_is_missing_around_the_gateway") {
        return;
    }
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let topic = kafka().topic("connect", 2).await;
    let dead = format!("{topic}.dead-letter");
    let settings = || gateway(&topic).redis(&redis).node(&comet);
    let (code, found) = connect(settings()).await;
    let about = |found: &[(String, bool, String)], subject: &str| {
        let found = found.iter().find(|(about, ..)| about.starts_with(subject));
        found.map(|(_, ok, text)| (*ok, text.clone())).unwrap_or_else(|| panic!("nothing about {subject}"))
    };
    // The stories' broker creates topics automatically.
    assert_eq!(code, Some(0), "{found:#?}");
    let made = (true, "does not exist yet; the brokers create topics on first use".to_owned());
    assert_eq!(about(&found, &format!("dead-letter topic {dead}")), made);
    assert_eq!(about(&found, &format!("notify topic {topic}.offline")), made);
    assert_eq!(about(&found, &format!("topic {topic}")), (true, "2 partitions".to_owned()));
    assert_eq!(about(&found, "group "), (true, "it has committed nothing yet".to_owned()));
    assert!(about(&found, "directory").1.contains("SORT_RO"), "{found:#?}");
    assert_eq!(about(&found, &format!("comet {}", comet.address())), (true, "connects".to_owned()));

    kafka().create_topic_with(&dead, 1, &[("max.message.bytes", "1000")]).await;
    let (code, found) = connect(settings()).await;
    assert_eq!(code, Some(1));
    assert!(about(&found, "dead-letter topic").1.contains("`max.message.bytes` is 1000"), "{found:#?}");

    let compacted = unique("compacted");
    kafka().create_topic_with(&compacted, 1, &[("cleanup.policy", "compact")]).await;
    comet.stop().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").to_string();
    let wrong = settings()
        .set("kafka", "dead_letter_topic", quoted(&compacted))
        .set("kafka", "topics", format!("[{}]", quoted(&unique("missing"))))
        .set("admin", "listen", quoted(&port));
    let (code, found) = connect(wrong).await;
    assert_eq!(code, Some(1));
    for (subject, expected) in [
        ("topic missing", "it does not exist"),
        ("dead-letter topic compacted", "it is compacted"),
        ("comet ", "cannot connect to"),
        ("admin listener", "cannot be bound"),
    ] {
        let (ok, text) = about(&found, subject);
        assert!(!ok && text.contains(expected), "{subject}: {text}");
    }

    let pattern = |pattern: &str| settings().set("kafka", "topics", format!("[{}]", quoted(pattern)));
    let dots = topic.replace('.', "\\.");
    let (_, found) = connect(pattern(&format!("^{dots}"))).await;
    let (ok, text) = about(&found, &format!("topics ^{dots}"));
    assert!(ok && text.contains(&format!("it matches 1 topic: {topic}; also `{dead}`")), "{text}");
    let (code, found) = connect(pattern("^none-of-these")).await;
    assert_eq!(code, Some(1));
    assert!(about(&found, "topics ^none").1.starts_with("it matches no topic;"), "{found:#?}");

    let nobody = format!("127.0.0.1:{}", free_port());
    let (code, found) = connect(settings().set("kafka", "brokers", quoted(&nobody))).await;
    assert_eq!(code, Some(1));
    assert!(about(&found, "kafka at").1.contains("refused"), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_the_next_generation_delivers() {
    if !kafka().can_prove("a_group_of_the_next_generation_delivers") {
        return;
    }
    let comet = FakeComet::start().await;
    let topic = kafka().topic("next", 2).await;
    let properties = "{ \"group.protocol\" = \"consumer\" }";
    let settings = gateway(&topic).node(&comet).set("kafka", "properties", properties);
    let running = settings.start().await;
    for body in ["a", "b", "c"] {
        kafka().produce_everyone(&topic, 0, body).await;
    }
    running.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), 3);
    // A running gateway holds the port; its own check accepts that.
    let listening = running.url().replace("http://", "");
    let (_, found) = connect(gateway(&topic).set("admin", "listen", quoted(&listening))).await;
    let admin = found.iter().find(|(subject, ..)| subject.starts_with("admin listener"));
    assert!(
        admin.is_some_and(|(_, ok, text)| *ok && text.contains("a gateway already listens there")),
        "{found:#?}"
    );
    // The listener for probes is tried as well: this one is a comet's.
    let taken = comet.address().to_string();
    let (_, found) = connect(gateway(&topic).set("admin", "probe_listen", quoted(&taken))).await;
    let probes = found.iter().find(|(subject, ..)| *subject == format!("admin listener for probes {taken}"));
    let told = probes.is_some_and(|(_, ok, text)| !*ok && text.contains("check `admin.probe_listen`"));
    assert!(told, "{found:#?}");
    // So is the API's.
    let api = gateway(&topic).set("api", "listen", quoted(&taken));
    let (code, found) = connect(api).await;
    let api = found.iter().find(|(subject, ..)| *subject == format!("API listener {taken}"));
    assert!(code == Some(1) && api.is_some_and(|(_, ok, _)| !ok), "{found:#?}");
    assert!(running.sigterm().await.success());
}

/// A Redis user that may do everything but keep lists of comets.
async fn without_sorted_sets(redis: &Redis) -> String {
    let mut user = redis::cmd("ACL");
    user.arg(&["SETUSER", "halley", "on", ">secret", "~*", "&*", "+@all", "-zadd"]);
    redis.run::<()>(user).await;
    redis.url().replace("redis://", "redis://halley:secret@")
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_names_every_planted_mistake() {
    let (redis, comet, files) = (Redis::start().await, FakeComet::start().await, folder("planted"));
    let topic = kafka().topic("planted", 1).await;
    let authority = Certificate::authority_for("comets", LONG);
    authority.write(files.path(), "ca");
    authority.issue("halley", LONG).write(files.path(), "long");
    authority.issue("halley", VALID).write(files.path(), "soon");
    authority.issue("halley", EXPIRED).write(files.path(), "expired");
    let foreign = Certificate::authority_for("others", EXPIRED);
    foreign.write(files.path(), "expired-ca");
    let stranger = Certificate::authority("strangers").issue("comet", LONG);
    let soon = in_front_of(&comet, &authority.issue("comet", VALID), None).await;
    let wrong = in_front_of(&comet, &stranger, None).await;
    let file = |name: &str| quoted(&files.path().join(name).display().to_string());
    let nobody = free_port();
    let properties = format!("{{ \"ssl.ca.location\" = {} }}", file("expired-ca.pem"));
    let archive =
        format!("mysql://ann:hunter2@127.0.0.1:{nobody}/halley?ssl-ca={}/ca.pem", files.path().display());
    let settings = gateway(&topic)
        .set("redis", "url", quoted(&without_sorted_sets(&redis).await))
        .node_at(format_args!("https://{}", soon.address))
        .node_at(format_args!("https://{}", wrong.address))
        .set("comets.tls", "ca", file("ca.pem"))
        .set("comets.tls", "server_name", quoted("comet"))
        .set("comets.tls", "certificate", file("long.pem"))
        .set("comets.tls", "key", file("long.key"))
        .set("admin.tls", "certificate", file("expired.pem"))
        .set("admin.tls", "key", file("expired.key"))
        .set("api.tls", "certificate", file("soon.pem"))
        .set("api.tls", "key", file("soon.key"))
        .set("kafka", "properties", properties)
        .set("archive", "url", quoted(&archive));
    let (code, found) = connect(settings).await;
    assert_eq!(code, Some(1), "{found:#?}");
    let path = |name: &str| files.path().join(name).display().to_string();
    for (subject, ok, expected) in [
        ("directory".to_owned(), false, "`ZADD` on `halley:*`"),
        (format!("comet https://{}", soon.address), true, "connects, certificate expires at"),
        (format!("comet https://{}", wrong.address), false, "the comet's certificate is refused"),
        ("archive database".to_owned(), false, "is unreachable"),
        (format!("certificate {} (comets.tls.ca)", path("ca.pem")), true, "valid until"),
        (format!("certificate {} (comets.tls.certificate)", path("long.pem")), true, "valid until"),
        (format!("certificate {} (admin.tls.certificate)", path("expired.pem")), false, "expired at"),
        (format!("certificate {} (api.tls.certificate)", path("soon.pem")), true, "within 30 days; renew it"),
        (
            format!("certificate {} (kafka.properties ssl.ca.location)", path("expired-ca.pem")),
            false,
            "expired at",
        ),
        (format!("certificate {} (archive.url ssl-ca)", path("ca.pem")), true, "valid until"),
    ] {
        let about = found.iter().find(|(about, ..)| *about == subject);
        let is_named = about.is_some_and(|(_, is_ok, text)| *is_ok == ok && text.contains(expected));
        assert!(is_named, "{subject}: {expected}: {found:#?}");
    }
    assert!(!format!("{found:?}").contains("hunter2"), "no password is shown: {found:#?}");
}

#[test]
fn a_key_of_another_certificate_is_a_mistake_without_connecting() {
    let files = folder("mixed");
    let authority = Certificate::authority("comets");
    authority.issue("halley", VALID).write(files.path(), "one");
    authority.issue("halley", VALID).write(files.path(), "other");
    let file = |name: &str| quoted(&files.path().join(name).display().to_string());
    let toml = format!("[api.tls]\ncertificate = {}\nkey = {}\n", file("one.pem"), file("other.key"));
    let (code, said) = check(&toml, &[], &[]);
    assert!(code == Some(2) && said.contains("the key does not belong to the certificate"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_asks_registries_and_warns_of_certificates_that_expire_soon() {
    let files = folder("expires");
    let topic = kafka().topic("expires", 1).await;
    Certificate::authority("admin").issue("halley", VALID).write(files.path(), "soon");
    let file = |name: &str| quoted(&files.path().join(name).display().to_string());
    let settings = gateway(&topic).set("admin.tls", "certificate", file("soon.pem")).set(
        "admin.tls",
        "key",
        file("soon.key"),
    );
    let (toml, story) = (settings.toml(), "connecting_asks_registries");
    let run = |toml: String| {
        let run = move || check(&toml, &["--connect"], &[]);
        async { tokio::task::spawn_blocking(run).await.expect("it does not panic") }
    };
    let (code, said) = run(toml).await;
    let warned = said.contains("halley: warning: certificate ") && said.contains("within 30 days; renew it");
    assert!(code == Some(0) && warned, "{said}");

    let Some(mut registry) = Registry::start(story, false).await else { return };
    let wasm =
        std::fs::read(repository("plugins/dist/keyword_filter.wasm")).expect("`make plugins` built it");
    let reference = registry.push("team/policy", &wasm, serde_json::json!({})).await;
    let words = serde_json::json!({ "words": ["x"] });
    let settings = gateway(&topic)
        .set("policies", "state_dir", file("state"))
        .plugin(Plugin::new("p", &reference).config(&words));
    let subject = format!("plugin p from {reference}");
    let (code, found) = connect(settings.clone()).await;
    let is_there = (subject.clone(), true, "it is there".to_owned());
    assert!(code == Some(0) && found.contains(&is_there), "{found:#?}");

    // A gateway has it cached; others would miss it.
    let running = settings.clone().start().await;
    assert!(running.sigterm().await.success());
    registry.stop();
    let (code, found) = connect(settings).await;
    let gone = found.iter().find(|(about, ..)| *about == subject);
    let is_told = gone.is_some_and(|(_, ok, text)| !ok && text.contains("cannot be found"));
    assert!(code == Some(1) && is_told, "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_asks_the_collector_of_traces() {
    let (topic, collector) = (kafka().topic("collector", 1).await, Collector::start().await);
    let takes = format!("takes spans at {}/v1/traces", collector.url());
    for (endpoint, ok, expected) in
        [(collector.url(), true, &*takes), ("http://127.0.0.1:1", false, "Connection refused")]
    {
        let settings = gateway(&topic).set("traces", "endpoint", quoted(endpoint));
        let (_, found) = connect(settings.set("traces", "timeout", quoted("2s"))).await;
        let about = found.iter().find(|(subject, ..)| subject == "collector of traces");
        assert!(about.is_some_and(|(_, is, text)| *is == ok && text.contains(expected)), "{found:#?}");
    }
}
