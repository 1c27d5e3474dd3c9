//! What unit tests share.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

/// Says that the running test is skipped and why; fails if `LOSTLOVE_TEST_NO_SKIP` is set.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let may_skip = std::env::var_os("LOSTLOVE_TEST_NO_SKIP").is_none();
    assert!(may_skip, "must not be skipped: {why}");
    eprintln!("skipped: {why}");
}

/// Collects what is logged while `body` runs on this thread.
pub(crate) fn capture(body: impl FnOnce()) -> String {
    let buffer = Buffer::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .without_time()
        .with_writer(buffer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, body);
    String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Buffer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
