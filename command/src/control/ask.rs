//! Questions to daemons, how long an answer may take, and what it means.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lostlove_host::control::protocol::{Answer, Body, ErrorCode, Failure, Request};
use lostlove_system::control_socket::{self, Holder};

use super::error::failed;
use super::{Connection, ControlError, PATIENCE, RELOAD_PATIENCE, REST_PATIENCE, at_once};
use crate::plain;

/// How often somebody who waits for an answer looks whether he is to wait any longer.
const LOOK: Duration = Duration::from_millis(50);
/// How often a connection is made anew where the daemon has closed it before it has answered: it does so
/// to whoever has been silent while more come than it has room for.
const TRIES_ANEW: u32 = 3;
/// Bytes of an answer: well more than the status of a server with very many peers has.
const MAX_ANSWER: usize = 64 << 20;

impl Connection {
    /// Asks, waits for an answer for `patience`, and returns what was said, as a line and as what it means.
    ///
    /// # Errors
    ///
    /// The daemon has gone, it says nothing, or it refuses.
    pub fn ask_for(&mut self, request: &Request, patience: Duration) -> Said {
        self.ask_until(request, &Deadline::after(patience))
    }

    /// Asks, and returns what was said, as a line and as what it means.
    ///
    /// # Errors
    ///
    /// The daemon has gone, it says nothing, or it refuses.
    pub fn ask(&mut self, request: &Request) -> Result<(String, Body), ControlError> {
        let patience = match request {
            Request::Reload { .. } => RELOAD_PATIENCE,
            _ => PATIENCE,
        };
        self.ask_for(request, patience)
    }

    fn ask_until(&mut self, request: &Request, deadline: &Deadline) -> Said {
        let mut line = self.exchange(request, deadline);
        for _ in 0..TRIES_ANEW {
            match &line {
                Err(error) if is_closed(error) && matches!(request, Request::Status { .. }) => {}
                _ => break,
            }
            line = control_socket::connect(&self.path, deadline.rest()).and_then(|stream| {
                self.stream = Some(BufReader::new(stream));
                self.exchange(request, deadline)
            });
        }
        understand(line.map_err(|source| self.failed(source))?)
    }

    fn exchange(&mut self, request: &Request, deadline: &Deadline) -> io::Result<String> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::WouldBlock)?;
        write_request(stream.get_mut(), request)?;
        read_answer(stream, deadline)
    }

    fn failed(&self, source: io::Error) -> ControlError {
        let is_silent = source.kind() == io::ErrorKind::WouldBlock;
        if !is_silent {
            return failed(&self.path, source);
        }
        let stream = self.stream.as_ref();
        ControlError::Silent {
            path: self.path.clone(),
            holder: stream.and_then(|stream| Holder::of(stream.get_ref()).ok()),
        }
    }
}

/// What a daemon has said: a line, and what it means.
pub type Said = Result<(String, Body), ControlError>;

/// Asks all daemons at once, so that one which hangs holds up none of the others, and none for longer
/// than `patience`. What each has said, in their order.
pub fn ask_all(daemons: &mut [Connection], request: &Request, patience: Duration) -> Vec<Said> {
    ask_until(daemons, request, patience, |_| false)
}

/// The same, but once one has said what is enough, the others are hardly waited for.
pub fn ask_until(
    daemons: &mut [Connection],
    request: &Request,
    patience: Duration,
    is_enough: impl Fn(&Said) -> bool + Sync,
) -> Vec<Said> {
    let deadline = Deadline::after(patience);
    at_once(daemons, |daemon| {
        let said = daemon.ask_until(request, &deadline);
        if is_enough(&said) {
            deadline.bring_forward(REST_PATIENCE);
        }
        said
    })
}

/// Until when an answer is waited for. It can come nearer meanwhile.
struct Deadline(Mutex<Instant>);

impl Deadline {
    fn after(patience: Duration) -> Self {
        Self(Mutex::new(Instant::now() + patience))
    }

    fn bring_forward(&self, patience: Duration) {
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *at = (*at).min(Instant::now() + patience);
    }

    fn rest(&self) -> Duration {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.saturating_duration_since(Instant::now())
    }
}

fn write_request(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(request).map_err(io::Error::other)?;
    bytes.push(b'\n');
    stream.write_all(&bytes)
}

/// Whether the other side has closed, and has said nothing before.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Reads a line until `deadline`.
fn read_answer(stream: &mut BufReader<UnixStream>, deadline: &Deadline) -> io::Result<String> {
    use io::ErrorKind::{Interrupted, InvalidData, Other, UnexpectedEof, WouldBlock};
    let mut line = Vec::new();
    loop {
        let rest = deadline.rest();
        if rest.is_zero() {
            return Err(WouldBlock.into());
        }
        stream.get_ref().set_read_timeout(Some(rest.min(LOOK)))?;
        let read = match stream.fill_buf() {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => continue,
            Err(error) => return Err(error),
        };
        let end = read.iter().position(|byte| *byte == b'\n');
        let len = end.map_or(read.len(), |end| end + 1);
        if len == 0 {
            let has_begun = !line.is_empty();
            let kind = if has_begun { Other } else { UnexpectedEof };
            return Err(io::Error::new(kind, "it has closed the connection"));
        }
        if line.len() + len > MAX_ANSWER {
            let what = format!("expected an answer of at most {MAX_ANSWER} bytes");
            return Err(io::Error::new(InvalidData, what));
        }
        line.extend(read.iter().take(len));
        stream.consume(len);
        if end.is_some() {
            let text = String::from_utf8(line);
            return text.map_err(|error| io::Error::new(InvalidData, error));
        }
    }
}

fn understand(line: String) -> Result<(String, Body), ControlError> {
    let answer: Answer =
        serde_json::from_str(&line).map_err(|error| ControlError::Foreign(error.to_string()))?;
    match answer.body {
        Body::Error(Failure { code, message }) => Err(refusal(code, plain::lines(&message))),
        body => Ok((line, body)),
    }
}

fn refusal(code: ErrorCode, message: String) -> ControlError {
    match code {
        ErrorCode::UnknownRequest | ErrorCode::UnsupportedVersion => ControlError::Older(message),
        ErrorCode::BadConfiguration => ControlError::BadConfiguration(message),
        ErrorCode::OtherConfiguration => ControlError::OtherConfiguration(message),
        _ => ControlError::Refused(message),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use lostlove_host::args::Exit;

    use super::super::find::{ACCEPT_PATIENCE, find_in};
    use super::*;

    #[test]
    fn an_answer_that_never_ends_is_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut reader = BufReader::new(ours);
        let is_over = thread::spawn(move || {
            while theirs.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let deadline = Deadline::after(Duration::from_millis(100));
        let error = read_answer(&mut reader, &deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(reader);
        is_over.join().unwrap();
    }

    #[test]
    fn who_says_nothing_is_hardly_waited_for_once_another_has_said_it_all() {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let (_hangs, good) = (listen("a.1.sock"), listen("b.1.sock"));
        let serving = thread::spawn(move || {
            let (stream, _) = good.accept().unwrap();
            let mut stream = BufReader::new(stream);
            stream.read_line(&mut String::new()).unwrap();
            let answer = b"{\"version\":1,\"done\":{\"message\":\"fine\"}}\n";
            stream.get_mut().write_all(answer).unwrap();
        });
        let mut found = find_in(folder.path(), "1", None, ACCEPT_PATIENCE).unwrap();
        let start = Instant::now();
        let long = Duration::from_secs(30);
        let said = ask_until(&mut found.daemons, &Request::reload(), long, Result::is_ok);
        let took = start.elapsed();
        assert!(took >= REST_PATIENCE && took < long / 2, "{took:?}");
        assert!(matches!(said[0], Err(ControlError::Silent { .. })));
        assert!(said[1].is_ok());
        serving.join().unwrap();
    }

    /// As a daemon does where more come than it has room for.
    #[test]
    fn who_is_closed_before_an_answer_asks_anew() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("a.1.sock")).unwrap();
        let serving = thread::spawn(move || {
            for _ in 0..TRIES_ANEW {
                drop(listener.accept().unwrap());
            }
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            stream.read_line(&mut String::new()).unwrap();
            let answer = b"{\"version\":1,\"done\":{\"message\":\"fine\"}}\n";
            stream.get_mut().write_all(answer).unwrap();
        });
        let mut found = find_in(folder.path(), "1", None, ACCEPT_PATIENCE).unwrap();
        let said = ask_all(&mut found.daemons, &Request::status(), PATIENCE);
        assert!(said[0].is_ok(), "{said:?}");
        serving.join().unwrap();
        let said = ask_all(&mut found.daemons, &Request::status(), PATIENCE);
        let said = said[0].as_ref().unwrap_err().to_string();
        assert!(said.contains("Connection refused"), "{said}");
    }

    #[test]
    fn what_a_daemon_says_cannot_steer_a_terminal() {
        let bad = r#"{"version":1,"error":{"code":"bad_configuration","message":"a\u001b[2J\nb"}}"#;
        let said = understand(bad.to_owned()).unwrap_err().to_string();
        assert!(said.ends_with("a\\u{1b}[2J\nb"), "{said:?}");
    }

    #[test]
    fn what_a_daemon_says_is_told_in_plain_words() {
        let say = |line: &str| understand(line.to_owned()).unwrap_err().to_string();
        let older = r#"{"version":1,"error":{"code":"unknown_request","message":"m"}}"#;
        assert!(say(older).starts_with("the daemon is older than this program"));
        let refused = r#"{"version":1,"error":{"code":"no_such_peer","message":"no"}}"#;
        assert_eq!(say(refused), "no");
        let bad = r#"{"version":1,"error":{"code":"bad_configuration","message":"a.toml:1"}}"#;
        assert!(say(bad).ends_with("nothing has changed\na.toml:1"));
        let error = understand(bad.to_owned()).unwrap_err();
        assert_eq!(Exit::from(&error), Exit::BadConfiguration);
        assert!(say(r#"{"version":1,"poem":{}}"#).contains("update the older one"));
        assert!(say("").contains("update the older one"));
    }
}
