//! A room of 100,000 members with 10,000 joins a second: messages for it and for others go on.

use crate::exact_routes::a_large_room_changes;
use crate::soak::fault_time;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn ten_thousand_joins_a_second_in_a_room_of_a_hundred_thousand() {
    a_large_room_changes(100_000, 10_000, fault_time() / 10).await;
}
