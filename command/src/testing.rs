//! What unit tests share.

/// Says that the running test is skipped and why; fails if `LOSTLOVE_TEST_NO_SKIP` is set.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let may_skip = std::env::var_os("LOSTLOVE_TEST_NO_SKIP").is_none();
    assert!(may_skip, "must not be skipped: {why}");
    eprintln!("skipped: {why}");
}
