//! The throughput of seven comets while the eighth is a black hole.

use std::time::Duration;

use crate::faults::world::{World, WorldBuilder};
use crate::soak::fault_time;
use crate::support::print_uncaptured;
use crate::support::proxy::Fault;

/// The maximum time of each half.
const LONGEST: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn seven_comets_keep_throughput_while_one_is_a_black_hole() {
    let lasts = fault_time().min(LONGEST);
    let plan = WorldBuilder::new("seven", 16, 8).await;
    // Every room is on two comets.
    let plan = WorldBuilder { network: Some(1), spread: |room, comet| (room + 8 - comet) % 8 < 2, ..plan };
    let world = plan.build().await;
    let gateway = world.gateway().await.start().await;
    let (healthy, holed) = world
        .load_during(async {
            world.wait_for_work(500).await;
            let healthy = calls_per_second(&world, lasts).await;
            world.comets[0].proxy().inject(Fault::BlackHole);
            // From the start: the time to detect the fault counts as well.
            let holed = calls_per_second(&world, lasts).await;
            world.comets[0].proxy().heal();
            (healthy, holed)
        })
        .await;
    world.settle(&gateway).await;
    world.report().await.assert_nothing_lost_or_reordered();
    let ratio = holed / healthy;
    print_uncaptured(format_args!(
        "throughput: seven of eight comets take {healthy:.0} calls/s in {lasts:?} of good health and {holed:.0} \
         calls/s in {lasts:?} from the moment on that the eighth is a black hole: {ratio:.3}x"
    ));
    assert!(ratio >= 0.95, "the seven are held up by the eighth: {ratio:.3}x");
}

/// The calls per second of all comets except the first.
async fn calls_per_second(world: &World, time: Duration) -> f64 {
    let count = || world.comets.iter().skip(1).map(|edge| edge.comet.count()).sum::<usize>();
    let before = count();
    tokio::time::sleep(time).await;
    (count() - before) as f64 / time.as_secs_f64()
}
