//! Private messages trigger a notification by day. In quiet hours they are stored, and the user finds
//! them in the inbox later.

use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// When the quiet hours begin, such as `22:00`.
    #[cfg_attr(test, schemars(regex(pattern = r"^([01]?[0-9]|2[0-3]):[0-5]?[0-9]$")))]
    from: String,
    /// When they end; may be on the next day.
    #[cfg_attr(test, schemars(regex(pattern = r"^([01]?[0-9]|2[0-3]):[0-5]?[0-9]$")))]
    to: String,
    /// The users' offset from UTC in minutes: 480 for China.
    #[cfg_attr(test, schemars(range(min = -840, max = 840)))]
    utc_offset: i32,
    /// The channel of notifications.
    channel: String,
}

struct QuietHours {
    /// Minutes of the day.
    from: i32,
    to: i32,
    utc_offset: i32,
    channel: String,
}

impl Policy for QuietHours {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let minute = |key: &str, text: &str| {
            minute_of_day(text).ok_or(format!("config.{key}: `{text}` is not a time of day such as 22:00"))
        };
        if !(-14 * 60..=14 * 60).contains(&config.utc_offset) {
            return Err(format!("config.utc_offset: {} minutes is no time zone", config.utc_offset));
        }
        let (from, to) = (minute("from", &config.from)?, minute("to", &config.to)?);
        Ok(Self { from, to, utc_offset: config.utc_offset, channel: config.channel })
    }
}

fn minute_of_day(text: &str) -> Option<i32> {
    let (hour, minute) = text.split_once(':')?;
    let (hour, minute) = (hour.parse::<i32>().ok()?, minute.parse::<i32>().ok()?);
    ((0..24).contains(&hour) && (0..60).contains(&minute)).then_some(hour * 60 + minute)
}

impl Offline for QuietHours {
    fn decide(&mut self, message: &Message, _absent: &Absent) -> Disposition {
        if message.audience != Audience::Keys {
            return Disposition::Pass; // room messages are left to the next policy
        }
        if self.is_quiet(now()) { Disposition::store() } else { Disposition::notify(&self.channel) }
    }
}

impl QuietHours {
    fn is_quiet(&self, now: Duration) -> bool {
        let utc = (now.as_secs() / 60 % 1440) as i32;
        let minute = (utc + self.utc_offset).rem_euclid(1440);
        if self.from <= self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

halley_plugin::export!(QuietHours: Offline, Settings);
halley_plugin::settings!(Config: "settings.json");

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, absent, keys, room};
    use serde_json::{Value, json};

    use super::*;

    fn config(from: &str, to: &str) -> Value {
        json!({ "from": from, "to": to, "utc_offset": 480, "channel": "apns" })
    }

    /// The disposition of a private message at this time of day in China.
    fn at(policy: &mut Harness<QuietHours>, hour: u64, minute: u64) -> Disposition {
        let utc =
            Duration::from_secs(20_000 * 86_400 + hour * 3600 + minute * 60) - Duration::from_secs(8 * 3600);
        policy.set_now(utc);
        policy.decide(keys(["ann"]).body("hi"), &[absent("ann", Cause::NotOnline)]).remove(0)
    }

    #[test]
    fn the_night_is_quiet_and_the_day_is_not() {
        let mut policy = Harness::<QuietHours>::new(config("22:00", "07:30"));
        let (store, wake) = (Disposition::store(), Disposition::notify("apns"));
        let times = [(21, 59), (22, 0), (0, 0), (7, 29), (7, 30), (12, 0)];
        let decided = times.map(|(hour, minute)| at(&mut policy, hour, minute));
        assert_eq!(decided, [wake.clone(), store.clone(), store.clone(), store, wake.clone(), wake]);
    }

    #[test]
    fn quiet_hours_may_be_by_day() {
        let mut policy = Harness::<QuietHours>::new(config("12:00", "14:00"));
        assert_eq!(at(&mut policy, 13, 0), Disposition::store());
        assert_eq!(at(&mut policy, 14, 0), Disposition::notify("apns"));
    }

    #[test]
    fn rooms_are_left_to_others() {
        let mut policy = Harness::<QuietHours>::new(config("22:00", "07:00"));
        let decided = policy.decide(room("video_1").body("hi"), &[absent("ann", Cause::NotOnline)]);
        assert_eq!(decided, [Disposition::Pass]);
    }

    #[test]
    fn what_is_no_time_of_day_is_refused() {
        for text in ["24:00", "7", "07:60", "seven", "-1:00"] {
            let refusal = Harness::<QuietHours>::refusal(config("22:00", text));
            assert!(refusal.starts_with("config.to:"), "{refusal}");
        }
    }
}
