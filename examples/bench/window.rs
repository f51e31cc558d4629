//! How many calls a merge window allows: the floor of rows with live messages.

use std::collections::HashMap;
use std::time::Duration;

/// The default of `[comets] merge_window` for goim.
pub(crate) const WINDOW: Duration = Duration::from_millis(50);

/// The calls to one comet for messages that were produced at these times, in order, each to its room:
/// the first goes at once, and what comes within the window after a call goes when it ends.
pub(crate) fn calls(messages: &[(usize, Duration)]) -> usize {
    let mut rooms: HashMap<usize, Duration> = HashMap::new();
    let mut calls = 0;
    for (room, at) in messages {
        // When its latest call goes, which is later than now for what gathers.
        match rooms.get_mut(room) {
            Some(last) if *last > *at => {}
            Some(last) => {
                calls += 1;
                *last = (*at).max(*last + WINDOW);
            }
            None => {
                calls += 1;
                rooms.insert(*room, *at);
            }
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_within_a_window_is_one_call() {
        let at = |millis: u64| (1, Duration::from_millis(millis));
        // At once; the two that gather until 50; what gathers until 100; at once again.
        assert_eq!(calls(&[at(0), at(10), at(49), at(60), at(200)]), 4);
        assert_eq!(calls(&[at(0), (2, Duration::ZERO)]), 2);
    }
}
