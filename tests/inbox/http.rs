//! Inboxes over HTTP.

use serde_json::{Value, json};

use super::{api_of, bodies, call, miss, numbers, with_api};
use crate::support::comet::{FakeComet, To};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually};

#[tokio::test]
async fn what_was_missed_is_read_and_acknowledged() {
    let redis = Redis::start().await;
    let (topic, settings) = with_api("inbox-http", &redis).await;
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    let get = async |path: String| call(&api, "GET", &path, None).await;

    let unknown = get("/v1/inbox/nobody".into()).await;
    assert_eq!(unknown.status, 200, "{unknown:?}");
    let empty = json!({ "entries": [], "next": "", "more": false, "truncated": false });
    assert_eq!(unknown.json(), empty);

    miss(&topic, &gateway, "ann", 0..12).await;
    let (mut path, mut seen, mut pages) = ("/v1/inbox/ann?limit=5".to_owned(), Vec::new(), Vec::new());
    loop {
        let page = get(path).await.json();
        seen.extend(bodies(&page));
        path = format!("/v1/inbox/ann?limit=5&after={}", page["next"].as_str().expect("a cursor"));
        let more = page["more"] == true;
        pages.push(page);
        if !more {
            break;
        }
    }
    assert_eq!((seen, pages.len()), (numbers(0..12), 3));
    let entry = &pages[0]["entries"][0];
    assert_eq!((&entry["cause"], &entry["operation"]), (&json!("no-connection"), &json!(4)), "{entry}");
    assert!(entry["id"].as_str().is_some_and(|id| id.starts_with(&format!("{topic}/0/0/"))), "{entry}");
    let newest = get("/v1/inbox/ann?backwards=true&limit=2".into()).await.json();
    assert_eq!(bodies(&newest), ["11", "10"]);

    // Positions: forward only, each device on its own.
    let ack = async |device: &str, cursor: &Value| {
        let body = json!({ "device": device, "cursor": cursor });
        call(&api, "POST", "/v1/inbox/ann/ack", Some(body)).await.json()
    };
    let position = async |device: &str| get(format!("/v1/inbox/ann/position?device={device}")).await.json();
    let (first, second) = (&pages[0]["next"], &pages[1]["next"]);
    assert_eq!(position("phone").await["acknowledged"], "");
    assert_eq!(&ack("phone", second).await["acknowledged"], second);
    assert_eq!(&ack("phone", first).await["acknowledged"], second, "backward is ignored");
    assert_eq!(&ack("tablet", first).await["acknowledged"], first);
    let standing = position("phone").await;
    assert_eq!((&standing["acknowledged"], &standing["kept"]), (second, &json!(12)), "nothing is deleted");
    assert_eq!(standing["last"], pages[2]["next"]);

    let requests = r#"halley_api_requests_total{operation="read",outcome="ok"}"#;
    assert_eq!(gateway.metric(requests).await, Some(5.0));
    let deleted = call(&api, "DELETE", "/v1/inbox/ann", None).await;
    assert_eq!((deleted.status, deleted.json()), (200, json!({ "deleted": 12, "archived": 0 })));
    assert_eq!(redis.keys("halley:inbox*").await, [""; 0]);
    assert_eq!(get("/v1/inbox/ann".into()).await.json(), empty);
    let description = get("/v1/openapi.json".into()).await;
    assert_eq!(description.json()["info"]["title"], "Halley inbox");
}

#[tokio::test]
async fn wrong_requests_are_told_which_field_is_wrong() {
    let mut redis = Redis::start().await;
    let (topic, settings) = with_api("inbox-wrong", &redis).await;
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    miss(&topic, &gateway, "ann", 0..1).await;
    let page = call(&api, "GET", "/v1/inbox/ann", None).await.json();
    let cursor = page["next"].as_str().expect("a cursor").to_owned();
    let long = "x".repeat(200);
    for (method, path, body, status, said) in [
        ("GET", "/v1/inbox/ann?after=nonsense".to_owned(), None, 400, "`after`: it is not a cursor"),
        (
            "GET",
            format!("/v1/inbox/bob?after={cursor}"),
            None,
            400,
            "`after`: it is a cursor of another inbox",
        ),
        ("GET", format!("/v1/inbox/ann?before={}", &cursor[1..]), None, 400, "`before`"),
        ("GET", "/v1/inbox/ann?limit=many".to_owned(), None, 400, "limit"),
        ("GET", "/v1/inbox/ann?first=1".to_owned(), None, 400, "first"),
        ("GET", format!("/v1/inbox/ann/position?device={long}"), None, 400, "`device`"),
        ("POST", "/v1/inbox/ann/ack".to_owned(), Some(json!({ "device": "d" })), 422, "cursor"),
        (
            "POST",
            "/v1/inbox/ann/ack".to_owned(),
            Some(json!({ "device": "", "cursor": cursor })),
            400,
            "`device`",
        ),
        (
            "POST",
            "/v1/inbox/ann/ack".to_owned(),
            Some(json!({ "device": "d", "cursor": "x" })),
            400,
            "`cursor`",
        ),
        ("POST", "/v1/inbox/ann/replay".to_owned(), Some(json!({ "acknowledge": true })), 400, "`device`"),
        ("POST", "/v1/inbox/ann/replay".to_owned(), Some(json!({})), 409, "not registered with a connection"),
        ("PUT", "/v1/inbox/ann".to_owned(), None, 405, ""),
        ("GET", "/v1/boxes".to_owned(), None, 404, "openapi.json"),
    ] {
        let answer = call(&api, method, &path, body).await;
        assert!(answer.status == status && answer.body.contains(said), "{method} {path}: {answer:?}");
    }
    // More than allowed is the most that is allowed.
    let most = call(&api, "GET", "/v1/inbox/ann?limit=100000", None).await;
    assert_eq!((most.status, bodies(&most.json())), (200, numbers(0..1)));

    if redis.can_stop("wrong_requests_are_told_which_field_is_wrong") {
        redis.stop();
        let down = async || {
            let answer = call(&api, "GET", "/v1/inbox/ann", None).await;
            (answer.status == 503).then_some(answer)
        };
        let answer = eventually("503 while Redis is away", PATIENCE, down).await;
        assert!(answer.head.to_ascii_lowercase().contains("retry-after: 1"), "{answer:?}");
        assert!(answer.body.contains("redis"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_backend_pushes_what_was_missed() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = with_api("inbox-push", &redis).await;
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    miss(&topic, &gateway, "ann", 0..7).await;
    redis.join("lobby", "conn_1", "ann", comet.address()).await;
    let replay = async |body: Value| call(&api, "POST", "/v1/inbox/ann/replay", Some(body)).await;

    let first = replay(json!({ "device": "phone", "limit": 3, "acknowledge": true })).await.json();
    assert_eq!(
        (&first["pushed"], &first["more"], &first["connection"]),
        (&json!(3), &json!(true), &json!("conn_1"))
    );
    // The rest: from where the device is now.
    let rest = replay(json!({ "device": "phone", "acknowledge": true })).await.json();
    assert_eq!((&rest["pushed"], &rest["more"], &rest["stopped"]), (&json!(4), &json!(false), &Value::Null));
    let to_ann = To::Keys(vec!["conn_1".into()]);
    let expected: Vec<_> = numbers(0..7).into_iter().map(|body| (to_ann.clone(), 4, body)).collect();
    assert_eq!(comet.deliveries(), expected, "in order, once");
    assert!(comet.calls().iter().all(|call| call.replayed && call.messages.len() == 1));
    assert_eq!(gateway.metric("halley_inbox_replayed_total").await, Some(7.0));
    let again = replay(json!({ "device": "phone" })).await.json();
    assert_eq!(again["pushed"], 0);

    // A comet that refuses one: the replay stops there and says so.
    comet.refuse("conn_1", tonic::Code::InvalidArgument);
    let stopped = replay(json!({})).await.json();
    assert_eq!((&stopped["pushed"], &stopped["more"]), (&json!(0), &json!(true)), "{stopped}");
    assert!(stopped["stopped"].as_str().is_some_and(|why| !why.is_empty()), "{stopped}");
}
