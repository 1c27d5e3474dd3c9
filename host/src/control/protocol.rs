//! Lines on the control socket: requests, and their answers.

use std::str::FromStr as _;

use lostlove_config::LogLevel;
use serde::{Deserialize, Serialize};

use super::files::Files;
use super::status::Status;

/// The version of what is said on the socket. It grows when something that was said before means
/// something else, not when something is added.
pub const VERSION: u32 = 1;

/// Bytes of a request, without its line feed.
pub const MAX_LINE: usize = 4096;

/// What a daemon is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What it does and how it is.
    Status {
        /// [`VERSION`].
        version: u32,
    },
    /// End the session of a peer, which may come back.
    Disconnect {
        /// [`VERSION`].
        version: u32,
        /// The peer's configured name.
        peer: String,
    },
    /// Log what is at least so severe, from now on until the daemon ends.
    LogLevel {
        /// [`VERSION`].
        version: u32,
        /// `error`, `warn`, `info`, `debug` or `trace`; none for what `--log-level`, `RUST_LOG` or else the
        /// configuration says.
        level: Option<String>,
    },
    /// Read the configuration again.
    Reload {
        /// [`VERSION`].
        version: u32,
        /// What to follow of it; none for all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        only: Option<Only>,
        /// What is meant; who reads something else refuses. None for whatever the daemon reads.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        files: Option<Files>,
    },
}

/// A part of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    /// Who may connect, and how fast and until when.
    Peers,
}

/// What every request has.
#[derive(Deserialize)]
struct Head {
    version: u32,
    request: String,
}

impl Request {
    /// Names of all requests, as of this version.
    pub const NAMES: [&'static str; 4] = ["status", "disconnect", "log-level", "reload"];

    /// Reads a line.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for whoever has sent it.
    pub fn parse(line: &[u8]) -> Result<Self, Failure> {
        let head: Head = serde_json::from_slice(line).map_err(|error| {
            Failure::new(
                ErrorCode::BadRequest,
                format!("expected an object with `version` and `request`: {error}"),
            )
        })?;
        if head.version != VERSION {
            let version = head.version;
            return Err(Failure::new(
                ErrorCode::UnsupportedVersion,
                format!("version {version} of the control socket; this daemon has {VERSION}"),
            ));
        }
        if !Self::NAMES.contains(&head.request.as_str()) {
            let known = Self::NAMES.join(", ");
            return Err(Failure::new(
                ErrorCode::UnknownRequest,
                format!("this daemon does not know this request; it knows {known}"),
            ));
        }
        serde_json::from_slice(line)
            .map_err(|error| Failure::new(ErrorCode::BadRequest, error.to_string()))
    }

    /// A request for the state.
    pub const fn status() -> Self {
        Self::Status { version: VERSION }
    }

    /// A request to end a peer's session.
    pub fn disconnect(peer: &str) -> Self {
        Self::Disconnect {
            version: VERSION,
            peer: peer.to_owned(),
        }
    }

    /// A request to read the configuration again.
    pub const fn reload() -> Self {
        Self::Reload {
            version: VERSION,
            only: None,
            files: None,
        }
    }

    /// A request to the server that reads these files to follow its peers alone.
    pub const fn reload_peers(files: Files) -> Self {
        Self::Reload {
            version: VERSION,
            only: Some(Only::Peers),
            files: Some(files),
        }
    }

    /// A request for another level of the log.
    pub fn log_level(level: Option<LogLevel>) -> Self {
        Self::LogLevel {
            version: VERSION,
            level: level.map(|level| level.as_str().to_owned()),
        }
    }
}

/// Reads a level.
///
/// # Errors
///
/// It is none.
pub(crate) fn level(text: &str) -> Result<LogLevel, Failure> {
    LogLevel::from_str(text).map_err(|_| {
        Failure::new(
            ErrorCode::BadRequest,
            "expected a level of error, warn, info, debug or trace",
        )
    })
}

/// What a daemon says to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// The rest.
    #[serde(flatten)]
    pub body: Body,
}

/// The rest of an [`Answer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The state.
    Status(Box<Status>),
    /// It is done.
    Done(Done),
    /// The configuration was read again.
    Reloaded(Reloaded),
    /// It is not.
    Error(Failure),
}

impl Answer {
    /// Says that it is done, in a sentence.
    pub(crate) fn done(message: impl Into<String>) -> Self {
        Body::Done(Done {
            message: message.into(),
        })
        .into()
    }

    /// The line on the socket, with its line feed.
    pub(crate) fn line(&self) -> Vec<u8> {
        // Maps have texts for keys and no number is other than finite.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

impl From<Body> for Answer {
    fn from(body: Body) -> Self {
        Self {
            version: VERSION,
            body,
        }
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        Body::Error(failure).into()
    }
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// For a person.
    pub message: String,
}

/// What has come of reading the configuration again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloaded {
    /// What has changed and is in force: keys of the configuration, and peers.
    pub applied: Vec<String>,
    /// What has changed, now or earlier, and is in force after a restart.
    pub needs_restart: Vec<String>,
    /// What has changed and waits for a reload of all, where only a part was wanted.
    pub waiting: Vec<String>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For a program.
    pub code: ErrorCode,
    /// For a person.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The line is no request, or something of it is missing, too much or of the wrong kind.
    BadRequest,
    /// The line is longer than [`MAX_LINE`].
    TooLong,
    /// The daemon speaks another version.
    UnsupportedVersion,
    /// The daemon does not know the request.
    UnknownRequest,
    /// Who asks may not.
    PermissionDenied,
    /// There is no such peer.
    NoSuchPeer,
    /// The peer has no session.
    NotConnected,
    /// A client has no peers to disconnect.
    NotAServer,
    /// The configuration cannot be used, and nothing has changed.
    BadConfiguration,
    /// The daemon reads another file.
    OtherConfiguration,
    /// The daemon did not get to it in time.
    Busy,
    /// The daemon is ending.
    Ending,
    /// One that this program does not know.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::super::files::FileId;
    use super::*;

    fn code(line: &str) -> ErrorCode {
        Request::parse(line.as_bytes()).unwrap_err().code
    }

    #[test]
    fn every_request_is_read_as_it_is_written() {
        let requests = [
            Request::status(),
            Request::disconnect("alice"),
            Request::log_level(Some(LogLevel::Debug)),
            Request::log_level(None),
            Request::reload(),
            Request::reload_peers(Files {
                config: Some(FileId {
                    device: 66_306,
                    inode: u64::MAX,
                }),
                peers: None,
            }),
        ];
        for request in requests {
            let line = serde_json::to_vec(&request).unwrap();
            assert_eq!(Request::parse(&line), Ok(request));
        }
        let line = r#"{"version":1,"request":"log-level"}"#;
        let request = Request::parse(line.as_bytes());
        assert_eq!(request, Ok(Request::log_level(None)));
    }

    #[test]
    fn what_is_no_request_is_named() {
        for (line, expected) in [
            ("", ErrorCode::BadRequest),
            ("\0\u{ff}", ErrorCode::BadRequest),
            ("[]", ErrorCode::BadRequest),
            (r#"{"request":"status"}"#, ErrorCode::BadRequest),
            (r#"{"version":1}"#, ErrorCode::BadRequest),
            (
                r#"{"version":-1,"request":"status"}"#,
                ErrorCode::BadRequest,
            ),
            (
                r#"{"version":1,"request":"disconnect"}"#,
                ErrorCode::BadRequest,
            ),
            (
                r#"{"version":1,"request":"disconnect","peer":7}"#,
                ErrorCode::BadRequest,
            ),
            // Nobody is to believe that a wish was heard.
            (
                r#"{"version":1,"request":"status","peers":[]}"#,
                ErrorCode::BadRequest,
            ),
            (
                r#"{"version":1,"request":"reload","only":"limits"}"#,
                ErrorCode::BadRequest,
            ),
            (
                r#"{"version":2,"request":"status","peers":[]}"#,
                ErrorCode::UnsupportedVersion,
            ),
            (
                r#"{"version":1,"request":"dance","tempo":3}"#,
                ErrorCode::UnknownRequest,
            ),
        ] {
            assert_eq!(code(line), expected, "{line}");
        }
        let deep = "[".repeat(MAX_LINE);
        assert_eq!(code(&deep), ErrorCode::BadRequest);
        assert_eq!(level("loud").unwrap_err().code, ErrorCode::BadRequest);
        assert_eq!(level("trace"), Ok(LogLevel::Trace));
    }

    #[test]
    fn an_answer_is_one_line() {
        let answer = Answer::done("two\nlines");
        let line = answer.line();
        let text = r#"{"version":1,"done":{"message":"two\nlines"}}"#;
        assert_eq!(line, format!("{text}\n").into_bytes());
        assert_eq!(serde_json::from_slice::<Answer>(&line).unwrap(), answer);
    }

    #[test]
    fn an_error_of_a_newer_daemon_is_read() {
        let line = r#"{"version":1,"new":3,"error":{"code":"tired","message":"m","since":4}}"#;
        let answer: Answer = serde_json::from_str(line).unwrap();
        let failure = Failure::new(ErrorCode::Other, "m");
        assert_eq!(answer.body, Body::Error(failure));
    }
}
