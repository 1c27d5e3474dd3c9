//! As much of HTTP/1.1 as a scraper needs: one request a connection, no bodies in.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::debug;

use super::{Freshness, Shared, text};

/// Connections at once; more are closed at once. Two scrapers and somebody with a browser fit.
pub(super) const MAX_CONNECTIONS: usize = 8;

/// Bytes of a request's head.
pub(super) const MAX_HEAD: usize = 8 * 1024;

/// Header lines of a request.
const MAX_HEADERS: usize = 64;

/// Time for a whole request to arrive, and again for the response to leave.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Wait after an accept that failed, as for want of descriptors, so that it does not spin.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Accepts connections until `shared.stop` is readable, each to a thread of its own.
pub(super) fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let mut fds = [
            PollFd::new(&shared.stop, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        // Failures such as EINTR leave no events; accepting then says that it would block.
        let _ = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => admit(stream, shared),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                debug!(%error, "cannot accept a connection for metrics");
                let _ = poll(
                    &mut [PollFd::new(&shared.stop, PollFlags::IN)],
                    Some(&RETRY),
                );
            }
        }
    }
}

fn admit(stream: TcpStream, shared: &Arc<Shared>) {
    // This thread alone adds, so the limit holds without a compare-and-swap.
    if shared.connections.load(Ordering::Acquire) >= MAX_CONNECTIONS {
        return;
    }
    shared.connections.fetch_add(1, Ordering::AcqRel);
    let slot = Slot(Arc::clone(shared));
    let spawned = thread::Builder::new()
        .name("metrics-request".to_owned())
        .spawn(move || {
            if let Err(error) = answer(&stream, &slot.0) {
                debug!(%error, "a request for metrics failed");
            }
        });
    if let Err(error) = spawned {
        debug!(%error, "no thread for a request for metrics");
    }
}

/// A connection's place among [`MAX_CONNECTIONS`], given back when dropped.
struct Slot(Arc<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

fn answer(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let Some(request) = read_request(stream)? else {
        return Ok(());
    };
    let response = match &request {
        Request::Get(path) | Request::Head(path) => route(path, shared),
        Request::OtherMethod => Response::plain("405 Method Not Allowed"),
        Request::Malformed => Response::plain("400 Bad Request"),
        Request::TooLarge => Response::plain("431 Request Header Fields Too Large"),
        Request::Late => Response::plain("408 Request Timeout"),
    };
    let bytes = response.to_bytes(&request);
    write_all(stream, &bytes)?;
    stream.shutdown(Shutdown::Write)
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Get(String),
    Head(String),
    OtherMethod,
    Malformed,
    TooLarge,
    Late,
}

/// Reads a request's head; none if the client closes or vanishes before its end.
fn read_request(mut stream: &TcpStream) -> io::Result<Option<Request>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut head = [0; MAX_HEAD];
    let mut filled = 0;
    loop {
        let Some(left) = remaining(deadline) else {
            return Ok(Some(Request::Late));
        };
        stream.set_read_timeout(Some(left))?;
        let Some(free) = head.get_mut(filled..).filter(|free| !free.is_empty()) else {
            return Ok(Some(Request::TooLarge));
        };
        match stream.read(free) {
            Ok(0) => return Ok(None),
            Ok(count) => filled += count,
            Err(error) if is_retry(&error) => continue,
            Err(error) => return Err(error),
        }
        if let Some(request) = head.get(..filled).and_then(parse) {
            return Ok(Some(request));
        }
    }
}

/// None if the head is not complete.
fn parse(head: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let target = request.path.unwrap_or_default();
            let path = target.split('?').next().unwrap_or_default().to_owned();
            Some(match request.method {
                Some("GET") => Request::Get(path),
                Some("HEAD") => Request::Head(path),
                _ => Request::OtherMethod,
            })
        }
        Err(httparse::Error::TooManyHeaders) => Some(Request::TooLarge),
        Err(_) => Some(Request::Malformed),
    }
}

fn route(path: &str, shared: &Shared) -> Response {
    match path {
        "/metrics" => {
            let (snapshot, _) = shared.snapshot();
            Response {
                status: "200 OK",
                content_type: text::CONTENT_TYPE,
                body: text::render(shared.role, shared.started, &snapshot),
            }
        }
        "/healthz" => match shared.snapshot() {
            (_, Freshness::Fresh) => Response::plain("200 OK"),
            (_, Freshness::Stale) => Response::plain("503 Service Unavailable"),
        },
        "/readyz" if shared.ready.load(Ordering::Relaxed) => Response::plain("200 OK"),
        "/readyz" => Response::plain("503 Service Unavailable"),
        _ => Response::plain("404 Not Found"),
    }
}

struct Response {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Response {
    fn plain(status: &'static str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{status}\n"),
        }
    }

    fn to_bytes(&self, request: &Request) -> Vec<u8> {
        let allow = match request {
            Request::OtherMethod => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let body = match request {
            Request::Head(_) => "",
            _ => self.body.as_str(),
        };
        format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}",
            self.status,
            self.content_type,
            self.body.len(),
        )
        .into_bytes()
    }
}

fn write_all(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !bytes.is_empty() {
        let left = remaining(deadline).ok_or(ErrorKind::TimedOut)?;
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if is_retry(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The time to `deadline`; none if it has passed.
fn remaining(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// Interrupted, or out of the time that [`remaining`] then judges.
fn is_retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_once_it_is_complete() {
        let head = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(parse(head), Some(Request::Get("/metrics".to_owned())));
        assert_eq!(parse(&head[..head.len() - 1]), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn other_methods_and_malformed_heads_are_told_apart() {
        let head = Request::Head("/".to_owned());
        assert_eq!(parse(b"HEAD / HTTP/1.0\r\n\r\n"), Some(head));
        assert_eq!(
            parse(b"POST / HTTP/1.1\r\n\r\n"),
            Some(Request::OtherMethod)
        );
        assert_eq!(parse(b"\x16\x03\x01\x02\x00"), Some(Request::Malformed));
        assert_eq!(parse(b"GET / HTTP/9\r\n\r\n"), Some(Request::Malformed));
    }

    #[test]
    fn too_many_headers_are_refused() {
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        head.extend(b"a: b\r\n".repeat(MAX_HEADERS + 1));
        head.extend(b"\r\n");
        assert_eq!(parse(&head), Some(Request::TooLarge));
    }
}
