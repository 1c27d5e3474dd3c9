//! How small servers, of metrics and of the control socket, deal with their clients' sockets. These do
//! not block.

use std::io::{self, ErrorKind, Read, Write};

use lostlove_pump::Progress;

/// Writes what is left of `bytes` from `written` on: [`Progress::Done`], [`Progress::Blocked`] until the
/// client reads, or [`Progress::Closed`] if he is gone.
pub(crate) fn write_rest(stream: &mut impl Write, bytes: &[u8], written: &mut usize) -> Progress {
    while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
        match stream.write(rest) {
            Ok(count) if count > 0 => *written += count,
            Err(error) if is_retry(&error) => return Progress::Blocked,
            Ok(_) | Err(_) => return Progress::Closed,
        }
    }
    Progress::Done
}

/// Reads and forgets what has come, by `reads` reads at most: a socket that is closed with unread bytes
/// takes with it what was written last. [`Progress::Closed`] at the end of the stream.
pub(crate) fn discard(stream: &mut impl Read, reads: usize) -> Progress {
    let mut buffer = [0; 16 * 1024];
    for _ in 0..reads {
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => {}
            Err(error) if is_retry(&error) => return Progress::Blocked,
            Ok(_) | Err(_) => return Progress::Closed,
        }
    }
    Progress::Ready
}

/// Whether the same may succeed later.
pub(crate) fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
}
