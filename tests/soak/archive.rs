//! A million archived messages of one user, and of one room, through the API in both directions.

#[tokio::test]
#[ignore = "minutes; `make soak`"]
async fn a_million_rows_are_paged() {
    let since = std::time::Instant::now();
    crate::archive::seam::many_rows_are_paged(1_000_000).await;
    crate::support::print_uncaptured(format_args!(
        "a million rows of an inbox, and of a history, paged twice in {:?}",
        since.elapsed()
    ));
}
