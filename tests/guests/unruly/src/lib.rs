//! A policy that obeys commands in message bodies (or in room names, or in its configuration); most
//! commands are misbehavior.
//!
//! Bodies, for `filter`, by their first word: `trap`, `loop`, `eat` (memory), `flood` (the log),
//! `chatter` (endless calls of the host); as a whole: `few` and `many` (verdicts), `gigabyte` (of
//! strings in some kilobytes of memory), `own-metrics`, and the ones in [`verdict`]. Other bodies
//! pass. For `decide` and `regroup`, see there.
//!
//! Configuration: `{"refuse": "..."}` makes `init` return an error, `{"start": "trap"}` and
//! `{"start": "loop"}` misbehave in `init`, `{"suffix": "..."}` is what `suffix` appends to bodies.

wit_bindgen::generate!({ path: "../../../wit", world: "policy" });

use exports::halley::policy::filter::{Amendment, Message, Once, Source, Verdict};
use exports::halley::policy::grouping::{Connection, Move, Placement, Redirect, Regrouping};
use exports::halley::policy::offline::{Absent, Disposition};
use exports::halley::policy::{filter, grouping, lifecycle, offline};
use halley::policy::host;

struct Unruly;

impl lifecycle::Guest for Unruly {
    fn init(config: String) -> Result<(), String> {
        if let Some(why) = text_of(&config, "refuse") {
            return Err(why);
        }
        if let Some(command) = text_of(&config, "start") {
            misbehave(command.as_bytes());
        }
        Ok(())
    }
}

impl filter::Guest for Unruly {
    fn filter(_source: Source, messages: Vec<Message>) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for message in &messages {
            misbehave(first_word(&message.body));
            match &message.body[..] {
                b"few" => return Vec::new(),
                b"many" => verdicts.push(Verdict::Pass),
                _ => {}
            }
            verdicts.push(verdict(message));
        }
        verdicts
    }
}

/// A verdict by the first word of the body; the rest is its argument.
fn verdict(message: &Message) -> Verdict {
    let body = String::from_utf8_lossy(&message.body);
    let (command, rest) = body.split_once(' ').unwrap_or((&body, ""));
    let text = rest.to_owned();
    let amend = |change: &dyn Fn(&mut Amendment)| {
        let mut amendment = nothing();
        change(&mut amendment);
        Verdict::Amend(amendment)
    };
    match command {
        "drop" => Verdict::Drop(text),
        "dead-letter" => Verdict::DeadLetter(text),
        "body" => amend(&|a| a.body = Some(rest.as_bytes().to_vec())),
        "suffix" => {
            let suffix = text_of(&host::config(), "suffix").unwrap_or_default();
            amend(&|a| a.body = Some(format!("{body}{suffix}").into_bytes()))
        }
        "operation" => amend(&|a| a.operation = rest.parse().ok()),
        "room" => amend(&|a| a.room = Some(text.clone())),
        "keys" => amend(&|a| a.keys = Some(words(rest))),
        "only" => amend(&|a| a.only = Some(words(rest))),
        "except" => amend(&|a| a.except = words(rest)),
        "also" => amend(&|a| a.also = words(rest)),
        "once" => amend(&|a| a.once.push(Once { key: text.clone(), ttl_ms: 1000 })),
        "once-never" => amend(&|a| a.once.push(Once { key: text.clone(), ttl_ms: 0 })),
        "once-long" => amend(&|a| a.once.push(Once { key: "k".repeat(513), ttl_ms: 1 })),
        "leak" => {
            let leaked = std::hint::black_box(vec![1_u8; 1024 * 1024].leak());
            amend(&|a| a.body = Some(vec![leaked[7]]))
        }
        "count" => amend(&|a| a.body = Some(count(rest).into_bytes())),
        "gigabyte" => Verdict::Amend(Amendment { except: gigabyte(), ..nothing() }),
        _ => Verdict::Pass,
    }
}

impl grouping::Guest for Unruly {
    /// By room: the misbehavior of [`misbehave`]; `bad-move`, `bad-redirect`, `no-address`; and
    /// `drain`, which redirects the first comet's share to `elsewhere:1`, skips the last connection
    /// and treats those of user `away` as offline.
    fn regroup(room: String, comets: Vec<String>, connections: Vec<Connection>) -> Regrouping {
        misbehave(room.as_bytes());
        let mut answer = Regrouping { redirects: Vec::new(), moves: Vec::new() };
        match room.as_str() {
            "bad-move" => answer.moves.push(Move { connection: 1_000_000, to: Placement::Skip }),
            "bad-redirect" => {
                answer.redirects.push(Redirect { comet: comets.len() as u32, to: "a:1".into() })
            }
            "no-address" => answer.moves.push(Move { connection: 0, to: Placement::Comet(String::new()) }),
            "drain" => {
                answer.redirects.push(Redirect { comet: 0, to: "elsewhere:1".into() });
                for (at, connection) in connections.iter().enumerate() {
                    if connection.user == "away" {
                        answer.moves.push(Move { connection: at as u32, to: Placement::Offline });
                    } else if at + 1 == connections.len() {
                        answer.moves.push(Move { connection: at as u32, to: Placement::Skip });
                    }
                }
            }
            _ => {}
        }
        answer
    }
}

impl offline::Guest for Unruly {
    /// By user: `drop`, `store`, `store-60`, `store-0` (invalid), `notify`, `notify-nobody`
    /// (invalid); no opinion about others. By body: the misbehavior of [`misbehave`], and `few`.
    fn decide(_source: Source, message: Message, absent: Vec<Absent>) -> Vec<Disposition> {
        misbehave(&message.body);
        if message.body == b"few" {
            return Vec::new();
        }
        let decide = |absent: &Absent| match absent.user.as_str() {
            "drop" => Disposition::Drop,
            "store" => Disposition::Store(None),
            "store-60" => Disposition::Store(Some(60)),
            "store-0" => Disposition::Store(Some(0)),
            "notify" => Disposition::Notify("apns".into()),
            "notify-nobody" => Disposition::Notify(String::new()),
            _ => Disposition::Pass,
        };
        absent.iter().map(decide).collect()
    }
}

fn first_word(body: &[u8]) -> &[u8] {
    body.split(|byte| *byte == b' ').next().unwrap_or_default()
}

/// Misbehaves as commanded. Returns if the command is not one of these.
fn misbehave(command: &[u8]) {
    match command {
        b"trap" => core::arch::wasm32::unreachable(),
        b"loop" => loop {
            std::hint::black_box(());
        },
        b"chatter" => loop {
            host::counter_add("chatter", host::now() % 2);
            let _ = host::state_get("chatter");
            host::log(host::Level::Debug, "chatter");
        },
        b"eat" => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(vec![1; 1024 * 1024]);
                std::hint::black_box(&eaten);
            }
        }
        b"flood" => (0..1000).for_each(|n| host::log(host::Level::Info, &format!("line {n}"))),
        b"own-metrics" => {
            for n in 0..1000 {
                host::counter_add(&format!("counter-{n}"), 1);
                host::gauge_set(&format!("gauge-{n}"), 0.5);
            }
        }
        _ => {}
    }
}

/// Counts in the state that all instances share. Returns how often this key was counted.
fn count(key: &str) -> String {
    let before = host::state_get(key).map_or(0, |value| value.len());
    let value = vec![0; before + 1];
    match host::state_set(key, &value, None) {
        Ok(()) => (before + 1).to_string(),
        Err(why) => why,
    }
}

/// A thousand references to the same megabyte: small here, and a gigabyte when copied.
fn gigabyte() -> Vec<String> {
    let text = vec![b'x'; 1024 * 1024].leak();
    let alias = |_| {
        // SAFETY: it is not sound, which is the point: what is freed twice is never freed,
        // because the gateway gives up on this instance before it gets the answer.
        #[allow(unsafe_code, reason = "strings that share their memory cannot be made otherwise")]
        unsafe {
            String::from_raw_parts(text.as_mut_ptr(), text.len(), text.len())
        }
    };
    (0..1024).map(alias).collect()
}

fn nothing() -> Amendment {
    Amendment {
        body: None,
        operation: None,
        room: None,
        keys: None,
        only: None,
        except: Vec::new(),
        also: Vec::new(),
        once: Vec::new(),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The text value of a key in flat JSON without escapes, as the tests write it.
fn text_of(json: &str, key: &str) -> Option<String> {
    let (_, after) = json.split_once(&format!("\"{key}\""))?;
    after.split('"').nth(1).map(str::to_owned)
}

export!(Unruly);
