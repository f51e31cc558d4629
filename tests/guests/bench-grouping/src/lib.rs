//! A grouping for benchmarks: reads every connection and skips one in a hundred. It exports no
//! `filter`, so it also shows what such a plugin costs a batch.

mod rule;

use halley_plugin::prelude::*;

halley_plugin::export!(LeaveOut: Grouping);

#[derive(Deserialize)]
struct LeaveOut {}

impl Grouping for LeaveOut {
    fn place(&mut self, _room: &Room, connection: &Connection) -> Option<Placement> {
        let Connection { id, user, comet, online } = connection;
        rule::is_left_out(id, user, *comet, *online).then_some(Placement::Skip)
    }
}
