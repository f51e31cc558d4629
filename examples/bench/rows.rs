//! The measurements, as data.
//!
//! A row has arms, which alternate, and lines of the table, each of which compares a figure of one arm
//! with one of another. The goals are the project's own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::producer::record_len;

/// What an arm measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// Microseconds of CPU time of the process per message of the topic.
    CpuPerMessage,
    /// The same per call to a comet.
    CpuPerCall,
    /// Calls, or frames of streams, for 100 deliveries, which are messages times comets.
    CallsPer100,
    /// Deliveries for each second of CPU time of the process.
    DeliveriesPerCpuSecond,
    /// The calls that the merge window allows.
    AllowedCallsPer100,
    /// Messages of the topic per second.
    MessagesPerSecond,
    /// Calls per second.
    CallsPerSecond,
    /// The same in the worst and the median tenth of a second.
    WorstTenth,
    MedianTenth,
    /// Microseconds from producing to the comet.
    LatencyP50,
    LatencyP99,
    /// Bytes of memory.
    MemoryPerMessage,
    /// How often rooms were read for 100 messages.
    ReadingsPer100,
    /// Microseconds of CPU time of Redis per message.
    RedisCpuPerMessage,
    /// How often messages of a room were repeated at a comet.
    Again,
    /// How often messages of a room were skipped: they are lost, or arrive later.
    Skipped,
}

pub(crate) type Figures = BTreeMap<Figure, f64>;

/// A row: arms that are measured together, alternating.
pub(crate) struct Row {
    /// For `--row`.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) arms: &'static [Arm],
    pub(crate) lines: &'static [Line],
}

/// One way to do the work.
pub(crate) enum Arm {
    /// The gateway.
    Gateway(Scenario),
    /// A bare loop of calls to a number of comets, with a number of open calls.
    Calls { comets: usize, open: usize },
    /// A bare drain of the topic of such a scenario.
    Drain(Scenario),
    /// One call for each record as it arrives.
    Direct,
}

/// The work of a gateway.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) dialect: Dialect,
    pub(crate) rooms: usize,
    pub(crate) comets: usize,
    /// The delay of the comets' answers, in milliseconds.
    pub(crate) delay: u64,
    pub(crate) load: Load,
    /// Whether comets serve streams.
    pub(crate) streams: bool,
    /// How many connections join rooms per second while live messages arrive, and as many leave.
    pub(crate) joins: usize,
    /// Whether messages pass a filter: keyword-filter with 1,000 words.
    pub(crate) filter: bool,
    /// Settings in addition to the defaults: section, key, and value as TOML.
    pub(crate) settings: &'static [(&'static str, &'static str, &'static str)],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Rooms in Redis, one connection on each comet.
    Chatroom,
    /// Every comet has every room.
    ChatroomEverywhere,
    /// The same in goim's dialect, where messages of a room are merged.
    Goim,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// The topic is filled before the gateway starts, with this part of the usual number of records.
    Backlog { times: usize, one_of: usize },
    /// 1,000 messages a second, each for any room.
    Live,
    /// One message after the other, with pauses.
    Lone,
    /// Comets accept messages and do not answer.
    Held,
    /// Live messages while policies are swapped, one swap after the other.
    Swaps,
}

/// A line of the table.
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) unit: Unit,
    /// The arm and its figure.
    pub(crate) of: (usize, Figure),
    /// The figure that it is compared with, and its name.
    pub(crate) against: Option<(usize, Figure, &'static str)>,
    pub(crate) goal: Goal,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Micros,
    PerSecond,
    Calls,
    Bytes,
}

/// The goal.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// The ratio to the other figure.
    RatioAtMost(f64),
    RatioAtLeast(f64),
    /// The figure itself.
    AtMost(f64),
    /// 1 KB and twice the record.
    MemoryOfRecord,
    /// For information.
    None,
}

impl Goal {
    /// The most that the figure itself may be.
    pub(crate) fn most(self) -> Option<f64> {
        match self {
            Self::AtMost(most) => Some(most),
            Self::MemoryOfRecord => Some(1024.0 + 2.0 * record_len() as f64),
            Self::RatioAtMost(_) | Self::RatioAtLeast(_) | Self::None => None,
        }
    }
}

const BACKLOG: Load = part(1);
const fn part(one_of: usize) -> Load {
    Load::Backlog { times: 1, one_of }
}

const GOIM_8: Scenario = Scenario {
    dialect: Dialect::Goim,
    rooms: 8,
    comets: 1,
    delay: 0,
    load: BACKLOG,
    streams: false,
    joins: 0,
    filter: false,
    settings: &[],
};
const GOIM_100: Scenario = Scenario { rooms: 100, comets: 4, ..GOIM_8 };
const UNARY: Scenario = Scenario { dialect: Dialect::Chatroom, load: part(4), ..GOIM_100 };
const STREAMED: Scenario = Scenario { streams: true, load: BACKLOG, ..UNARY };
const WHOLE_PATH: Scenario = Scenario { filter: true, ..STREAMED };
const EVERYWHERE: Scenario = Scenario { dialect: Dialect::ChatroomEverywhere, ..UNARY };

/// Live messages for rooms in Redis.
const ROUTES: Scenario = Scenario { load: Load::Live, comets: 2, ..UNARY };
/// The same, while 10,000 connections join each second.
const JOINS: Scenario = Scenario { joins: 10_000, ..ROUTES };
/// Cached rooms count for a second.
const NOT_EXACT: &[(&str, &str, &str)] = &[("routing.cache", "exact", "\"off\"")];

/// Limits that no backlog reaches.
const UNLIMITED: &[(&str, &str, &str)] = &[
    ("delivery", "max_in_flight", "10000000"),
    ("delivery", "max_in_flight_bytes", "\"4GiB\""),
    ("comets", "queue", "10000000"),
    ("comets", "max_pending_bytes", "\"8GiB\""),
];
/// A backlog that takes seconds: starting and ending count little.
const LONG: Scenario = Scenario { load: Load::Backlog { times: 8, one_of: 1 }, ..GOIM_8 };

const fn line(what: &'static str, unit: Unit, arm: usize, figure: Figure) -> Line {
    Line { what, unit, of: (arm, figure), against: None, goal: Goal::None }
}

impl Line {
    const fn against(self, arm: usize, figure: Figure, name: &'static str) -> Self {
        Self { against: Some((arm, figure, name)), ..self }
    }

    const fn goal(self, goal: Goal) -> Self {
        Self { goal, ..self }
    }
}

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "unary",
        about: "chatroom, 100 rooms in Redis, 4 comets: a call for each message and comet",
        arms: &[Arm::Gateway(UNARY), Arm::Calls { comets: 4, open: 8 }, Arm::Calls { comets: 4, open: 64 }],
        lines: &[
            line("CPU per call", Unit::Micros, 0, Figure::CpuPerCall)
                .against(1, Figure::CpuPerCall, "h2 loop, 8 open")
                .goal(Goal::RatioAtMost(1.6)),
            line("CPU per call", Unit::Micros, 0, Figure::CpuPerCall)
                .against(2, Figure::CpuPerCall, "h2 loop, 64 open")
                .goal(Goal::RatioAtMost(1.6)),
            line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage),
            line("messages", Unit::PerSecond, 0, Figure::MessagesPerSecond),
        ],
    },
    Row {
        name: "non-call",
        about: "goim, 8 rooms, 1 comet: everything but the calls, which are few",
        arms: &[Arm::Gateway(GOIM_8), Arm::Drain(GOIM_8)],
        lines: &[
            line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage)
                .against(1, Figure::CpuPerMessage, "bare drain")
                .goal(Goal::RatioAtMost(8.0)),
            line("messages", Unit::PerSecond, 0, Figure::MessagesPerSecond).against(
                1,
                Figure::MessagesPerSecond,
                "bare drain",
            ),
            line("calls per 100 deliveries", Unit::Calls, 0, Figure::CallsPer100),
        ],
    },
    Row {
        name: "goim",
        about: "goim, 100 rooms, 4 comets, backlog",
        arms: &[Arm::Gateway(GOIM_100)],
        lines: &[
            line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage).goal(Goal::AtMost(5.0)),
            line("calls per 100 deliveries", Unit::Calls, 0, Figure::CallsPer100).goal(Goal::AtMost(5.0)),
            line("messages", Unit::PerSecond, 0, Figure::MessagesPerSecond),
        ],
    },
    Row {
        name: "slow-comets",
        about: "goim, 100 rooms, 4 comets that answer after 2 ms",
        arms: &[Arm::Gateway(Scenario { delay: 2, ..GOIM_100 }), Arm::Gateway(GOIM_100)],
        lines: &[line("messages", Unit::PerSecond, 0, Figure::MessagesPerSecond)
            .against(1, Figure::MessagesPerSecond, "instant comets")
            .goal(Goal::RatioAtLeast(0.9))],
    },
    Row {
        name: "live-1",
        about: "goim, 1,000 live messages a second in one room",
        arms: &[Arm::Gateway(Scenario { rooms: 1, comets: 1, load: Load::Live, ..GOIM_8 })],
        lines: LIVE,
    },
    Row {
        name: "live-100",
        about: "goim, 1,000 live messages a second in 100 rooms",
        arms: &[Arm::Gateway(Scenario { rooms: 100, comets: 1, load: Load::Live, ..GOIM_8 })],
        lines: LIVE,
    },
    Row {
        name: "streamed",
        about: "chatroom, 100 rooms in Redis, 4 comets: by stream instead of by calls",
        arms: &[Arm::Gateway(STREAMED), Arm::Gateway(UNARY)],
        lines: &[
            line("deliveries per CPU second", Unit::PerSecond, 0, Figure::DeliveriesPerCpuSecond)
                .against(1, Figure::DeliveriesPerCpuSecond, "by calls")
                .goal(Goal::RatioAtLeast(8.0)),
            line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage),
            line("frames per 100 deliveries", Unit::Calls, 0, Figure::CallsPer100),
            line("messages", Unit::PerSecond, 0, Figure::MessagesPerSecond).against(
                1,
                Figure::MessagesPerSecond,
                "by calls",
            ),
        ],
    },
    Row {
        name: "whole-path",
        about: "a filter with 1,000 words, 100 cached routes, 4 streamed comets",
        arms: &[Arm::Gateway(WHOLE_PATH), Arm::Drain(WHOLE_PATH)],
        lines: &[
            line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage)
                .against(1, Figure::CpuPerMessage, "bare drain")
                .goal(Goal::RatioAtMost(15.0)),
            line("messages", Unit::PerSecond, 0, Figure::MessagesPerSecond),
        ],
    },
    Row {
        name: "routes",
        about: "chatroom, 1,000 live messages a second in 100 rooms: exact routes, instead of routes that count for a second",
        arms: &[Arm::Gateway(ROUTES), Arm::Gateway(Scenario { settings: NOT_EXACT, ..ROUTES })],
        lines: &[
            line("readings of rooms per 100 messages", Unit::Calls, 0, Figure::ReadingsPer100)
                .against(1, Figure::ReadingsPer100, "not exact")
                .goal(Goal::AtMost(5.0)),
            line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage)
                .against(1, Figure::CpuPerMessage, "not exact")
                .goal(Goal::RatioAtMost(1.1)),
        ],
    },
    Row {
        name: "joins",
        about: "the same while 10,000 connections join each second, and as many leave",
        arms: &[Arm::Gateway(JOINS), Arm::Gateway(Scenario { settings: NOT_EXACT, ..JOINS })],
        lines: &[
            line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage).against(
                1,
                Figure::CpuPerMessage,
                "not exact",
            ),
            line("CPU of Redis per message", Unit::Micros, 0, Figure::RedisCpuPerMessage).against(
                1,
                Figure::RedisCpuPerMessage,
                "not exact",
            ),
            line("readings of rooms per 100 messages", Unit::Calls, 0, Figure::ReadingsPer100).against(
                1,
                Figure::ReadingsPer100,
                "not exact",
            ),
        ],
    },
    Row {
        name: "backlog",
        about: "goim, 8 rooms, 1 comet: the default limits",
        arms: &[Arm::Gateway(LONG), Arm::Gateway(Scenario { settings: UNLIMITED, ..LONG })],
        lines: &[line("messages", Unit::PerSecond, 0, Figure::MessagesPerSecond)
            .against(1, Figure::MessagesPerSecond, "unlimited in flight")
            .goal(Goal::RatioAtLeast(0.9))],
    },
    Row {
        name: "idle",
        about: "chatroom, one message after the other, from the producer to the comet",
        arms: &[
            Arm::Gateway(Scenario { rooms: 1, comets: 1, load: Load::Lone, ..UNARY }),
            Arm::Direct,
            Arm::Gateway(Scenario { rooms: 1, comets: 1, load: Load::Lone, ..GOIM_8 }),
        ],
        lines: &[
            line("latency p50", Unit::Micros, 0, Figure::LatencyP50)
                .against(1, Figure::LatencyP50, "consume, direct call")
                .goal(Goal::RatioAtMost(1.15)),
            line("latency p99", Unit::Micros, 0, Figure::LatencyP99)
                .against(1, Figure::LatencyP99, "consume, direct call")
                .goal(Goal::RatioAtMost(1.5)),
            line("latency p50, goim", Unit::Micros, 2, Figure::LatencyP50).against(
                1,
                Figure::LatencyP50,
                "consume, direct call",
            ),
            line("latency p99, goim", Unit::Micros, 2, Figure::LatencyP99).against(
                1,
                Figure::LatencyP99,
                "consume, direct call",
            ),
        ],
    },
    Row {
        name: "memory",
        about: "goim, 100 rooms, 1 comet that does not answer: what is in flight",
        arms: &[Arm::Gateway(Scenario { comets: 1, load: Load::Held, settings: UNLIMITED, ..GOIM_100 })],
        lines: &[line("memory per message in flight", Unit::Bytes, 0, Figure::MemoryPerMessage)
            .goal(Goal::MemoryOfRecord)],
    },
    Row {
        name: "rooms",
        about: "chatroom, 1 comet: 100,000 rooms instead of 10",
        arms: &[
            Arm::Gateway(Scenario { rooms: 100_000, comets: 1, ..EVERYWHERE }),
            Arm::Gateway(Scenario { rooms: 10, comets: 1, ..EVERYWHERE }),
        ],
        lines: &[line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage)
            .against(1, Figure::CpuPerMessage, "10 rooms")
            .goal(Goal::RatioAtMost(1.1))],
    },
    Row {
        name: "comets",
        about: "chatroom, 100 rooms: 64 comets instead of 1",
        arms: &[
            Arm::Gateway(Scenario { comets: 64, load: part(64), ..EVERYWHERE }),
            Arm::Gateway(Scenario { comets: 1, ..EVERYWHERE }),
        ],
        lines: &[line("CPU per call", Unit::Micros, 0, Figure::CpuPerCall)
            .against(1, Figure::CpuPerCall, "1 comet")
            .goal(Goal::RatioAtMost(1.1))],
    },
    Row {
        name: "swaps",
        about: "1,000 live messages a second through a filter that is replaced 1,000 times",
        arms: &[Arm::Gateway(Scenario {
            comets: 1,
            load: Load::Swaps,
            filter: true,
            settings: &[("policies", "debounce", "\"20ms\"")],
            ..UNARY
        })],
        lines: &[line("messages in the worst 100 ms", Unit::PerSecond, 0, Figure::WorstTenth)
            .against(0, Figure::MedianTenth, "the median")
            .goal(Goal::RatioAtLeast(0.95))],
    },
];

const LIVE: &[Line] = &[
    line("calls per 100 messages", Unit::Calls, 0, Figure::CallsPer100)
        .against(0, Figure::AllowedCallsPer100, "what 50 ms allow")
        .goal(Goal::RatioAtMost(1.1)),
    line("latency p50", Unit::Micros, 0, Figure::LatencyP50),
    line("latency p99", Unit::Micros, 0, Figure::LatencyP99),
    line("CPU per message", Unit::Micros, 0, Figure::CpuPerMessage),
];
