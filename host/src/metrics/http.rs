//! As much of HTTP/1.1 as a scraper needs: one request a connection, no bodies in.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lostlove_pump::Progress;

use super::{Freshness, Shared, text};
use crate::answers::write_rest;

/// How long the question whether all is well waits for the event loop. A loop that takes longer does not
/// move packets either.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for the page, with figures of what may be very many peers: shorter than scrapers wait.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(3);

/// Header lines of a request.
const MAX_HEADERS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Get(String),
    Head(String),
    OtherMethod,
    Malformed,
    /// For a name that may be anybody's.
    Misdirected,
    TooLarge,
    Late,
}

/// None if the head is not complete.
pub(super) fn parse(head: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let target = request.path.unwrap_or_default();
            let path = target.split('?').next().unwrap_or_default().to_owned();
            if let Err(refusal) = judge_host(request.headers) {
                return Some(refusal);
            }
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

/// Refuses what a browser may send for a web page of somebody else's: a page can have its own name
/// resolved to this machine's address (DNS rebinding), and then may read what comes from there.
fn judge_host(headers: &[httparse::Header<'_>]) -> Result<(), Request> {
    let is_host = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("host");
    let mut hosts = headers.iter().filter(is_host);
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(Request::Malformed),
        (Some(host), None) if !is_nobodys_name(host.value) => Err(Request::Misdirected),
        _ => Ok(()),
    }
}

/// Whether `Host` is a literal address or `localhost`, with or without a port.
fn is_nobodys_name(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    let host = host.trim();
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|it| it.split_once(']')) {
        let is_end = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return is_end && address.parse::<Ipv6Addr>().is_ok();
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    let is_own = name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok();
    is_own && is_port(port)
}

impl Request {
    /// How long it waits for the event loop's figures, where the answer has figures or is whether there
    /// are any.
    pub(super) fn patience(&self) -> Option<Duration> {
        match self {
            Self::Get(path) | Self::Head(path) if path == "/metrics" => Some(SCRAPE_PATIENCE),
            Self::Get(path) | Self::Head(path) if path == "/healthz" => Some(PATIENCE),
            _ => None,
        }
    }

    /// The whole answer. `page` has the page of figures.
    pub(super) fn answer(
        &self,
        shared: &Shared,
        freshness: Freshness,
        page: impl FnOnce() -> Arc<String>,
    ) -> Answer {
        let response = match self {
            Self::Get(path) | Self::Head(path) => route(path, shared, freshness, page),
            Self::OtherMethod => Response::plain("405 Method Not Allowed"),
            Self::Malformed => Response::plain("400 Bad Request"),
            Self::Misdirected => Response {
                body: Arc::new(
                    "421 Misdirected Request: expected an IP address or localhost as Host\n".into(),
                ),
                ..Response::plain("421 Misdirected Request")
            },
            Self::TooLarge => Response::plain("431 Request Header Fields Too Large"),
            Self::Late => Response::plain("408 Request Timeout"),
        };
        response.into_answer(self)
    }
}

fn route(
    path: &str,
    shared: &Shared,
    freshness: Freshness,
    page: impl FnOnce() -> Arc<String>,
) -> Response {
    match (path, freshness) {
        ("/metrics", Freshness::Fresh) => Response {
            status: "200 OK",
            content_type: text::CONTENT_TYPE,
            body: page(),
        },
        // Old figures would look like those of a daemon that is well.
        ("/metrics", Freshness::Stale) => {
            Response::unready(Some("the event loop has not answered in time"))
        }
        ("/healthz", Freshness::Fresh) => Response::plain("200 OK"),
        ("/healthz", Freshness::Stale) => Response::plain("503 Service Unavailable"),
        ("/readyz", _) if shared.ready.load(Ordering::Relaxed) => Response::plain("200 OK"),
        ("/readyz", _) => Response::unready(shared.lock_problem().as_deref()),
        _ => Response::plain("404 Not Found"),
    }
}

struct Response {
    status: &'static str,
    content_type: &'static str,
    body: Arc<String>,
}

impl Response {
    fn plain(status: &'static str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: Arc::new(format!("{status}\n")),
        }
    }

    fn unready(problem: Option<&str>) -> Self {
        let mut response = Self::plain("503 Service Unavailable");
        if let Some(problem) = problem {
            response.body = Arc::new(format!("{problem}\n"));
        }
        response
    }

    fn into_answer(self, request: &Request) -> Answer {
        let allow = match request {
            Request::OtherMethod => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len(),
        );
        let body = match request {
            Request::Head(_) => Arc::default(),
            _ => self.body,
        };
        Answer {
            parts: [Arc::new(head), body],
            written: [0; 2],
        }
    }
}

/// What goes to a client: a head of its own, and a body that others may get as well.
pub(super) struct Answer {
    parts: [Arc<String>; 2],
    /// Bytes of each that have gone.
    written: [usize; 2],
}

impl Answer {
    /// Writes what is left of it, as [`write_rest`].
    pub(super) fn write(&mut self, stream: &mut impl Write) -> Progress {
        for (part, written) in self.parts.iter().zip(&mut self.written) {
            match write_rest(stream, part.as_bytes(), written) {
                Progress::Done => {}
                progress => return progress,
            }
        }
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_once_it_is_complete() {
        let head = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
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

    #[test]
    fn a_host_is_a_literal_address_or_localhost() {
        let request = |host: &str| parse(format!("GET /healthz HTTP/1.1\r\n{host}\r\n").as_bytes());
        for good in [
            "",
            "Host: 127.0.0.1\r\n",
            "host: 10.0.0.1:9190\r\n",
            "HOST:[::1]\r\n",
            "Host: [2001:db8::1]:9190\r\n",
            "Host: localhost\r\n",
            "Host: LocalHost:9190\r\n",
        ] {
            assert_eq!(
                request(good),
                Some(Request::Get("/healthz".to_owned())),
                "{good}"
            );
        }
        for bad in [
            "rebind.example",
            "rebind.example:9190",
            "localhost.rebind.example",
            "127.0.0.1.rebind.example",
            "localhost:x",
            "[::1]x",
            "[::1",
            "::1",
            "",
            "\u{fc}",
        ] {
            let refused = request(&format!("Host: {bad}\r\n"));
            assert_eq!(refused, Some(Request::Misdirected), "{bad}");
        }
        let two = request("Host: localhost\r\nHost: rebind.example\r\n");
        assert_eq!(two, Some(Request::Malformed));
    }
}
