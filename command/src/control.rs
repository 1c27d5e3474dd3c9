//! The daemons of this machine, found and asked through their control sockets.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_host::args::Exit;
use lostlove_host::control::protocol::{Answer, Body, ErrorCode, Failure, Request};
use lostlove_system::control_socket::{self, FOLDER, GROUP, Holder, SUFFIX, group_name};
use lostlove_system::net::namespace_name;

/// How long a daemon may take to answer. It gives up by itself sooner.
pub const PATIENCE: Duration = Duration::from_secs(7);
/// The same for what takes longer: to read the files of very many peers.
pub const RELOAD_PATIENCE: Duration = Duration::from_secs(15);
/// How long a daemon may take to accept a connection, while others come, too.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(2);
/// How long the others are waited for once one has said what was to be known.
const REST_PATIENCE: Duration = Duration::from_millis(500);
/// How often somebody who waits for an answer looks whether he is to wait any longer.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of an answer: well more than the status of a server with very many peers has.
const MAX_ANSWER: usize = 64 << 20;

/// Why a daemon was not asked, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is none.
    #[error("no LostLove daemon runs on this machine (there is no socket of one in {FOLDER})")]
    NoDaemon,
    /// There is none of this name.
    #[error("no daemon {name:?} runs on this machine; there is {}", names.join(", "))]
    NotFound {
        /// What was asked for.
        name: String,
        /// What there is.
        names: Vec<String>,
    },
    /// There are several.
    #[error("several daemons run on this machine; name one of {}", .0.join(", "))]
    Several(Vec<String>),
    /// This user may not.
    #[error("permission denied: {} is for root and for the group {group}; use sudo", path.display())]
    Denied {
        /// The socket, or its folder.
        path: PathBuf,
        /// Whose members may.
        group: String,
    },
    /// The system refuses it, or the daemon has gone.
    #[error("cannot ask the daemon at {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is there, and says nothing.
    #[error(
        "the daemon at {} does not answer: {} is stopped, or hangs",
        path.display(),
        holder.as_ref().map_or_else(|| "its process".to_owned(), ToString::to_string)
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Whose it is, if it got so far as to say.
        holder: Option<Holder>,
    },
    /// It says something that this program does not know.
    #[error(
        "the daemon says something that this program does not know ({0}); update the older one"
    )]
    Foreign(String),
    /// It does not know the request.
    #[error(
        "the daemon is older than this program and does not know this request: {0}; restart it"
    )]
    Older(String),
    /// It cannot use its configuration.
    #[error("the configuration cannot be used, and nothing has changed\n{0}")]
    BadConfiguration(String),
    /// It reads other files than were meant.
    #[error("{0}")]
    OtherConfiguration(String),
    /// It refuses.
    #[error("{0}")]
    Refused(String),
    /// What it says cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl ControlError {
    /// It says something, and no answer.
    pub(crate) fn no_answer() -> Self {
        Self::Foreign("no answer to this request".to_owned())
    }
}

impl From<&ControlError> for Exit {
    fn from(error: &ControlError) -> Self {
        match error {
            ControlError::Denied { .. } => Self::NoPermission,
            ControlError::BadConfiguration(_) => Self::BadConfiguration,
            _ => Self::Failure,
        }
    }
}

/// A daemon's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    device: String,
    namespace: String,
}

impl Place {
    fn of(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
        let (device, namespace) = name.rsplit_once('.')?;
        let (device, namespace) = (device.to_owned(), namespace.to_owned());
        Some(Self {
            path,
            device,
            namespace,
        })
    }

    /// What it is called by: the device, or, in another namespace, both.
    fn name(&self, own: &str) -> String {
        if self.namespace == own {
            self.device.clone()
        } else {
            format!("{}.{}", self.device, self.namespace)
        }
    }
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Connection {
    /// What it is called by here.
    pub name: String,
    /// Whether it is in this network namespace.
    pub is_here: bool,
    path: PathBuf,
    /// None if it takes no connections.
    stream: Option<BufReader<UnixStream>>,
}

/// All daemons of the machine, or those of a name.
///
/// # Errors
///
/// There is none, or none that this user may ask.
pub fn find_all(name: Option<&str>) -> Result<Vec<Connection>, ControlError> {
    find_here(name)?.some(name)
}

/// All daemons of the machine, also those that this user may not ask.
///
/// # Errors
///
/// This user may not look.
pub fn find_every() -> Result<Found, ControlError> {
    find_in(Path::new(FOLDER), &namespace_name(), None, REST_PATIENCE)
}

fn find_here(name: Option<&str>) -> Result<Found, ControlError> {
    find_in(Path::new(FOLDER), &namespace_name(), name, ACCEPT_PATIENCE)
}

/// A daemon that cannot be asked.
#[derive(Debug)]
pub struct Denied {
    /// What it is called by here.
    pub name: String,
    /// Whether it is in this network namespace.
    pub is_here: bool,
    /// Why.
    pub error: ControlError,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that can be asked.
    pub daemons: Vec<Connection>,
    /// Those that cannot.
    pub denied: Vec<Denied>,
    /// Those of other names.
    others: Vec<String>,
}

impl Found {
    /// Some daemons of `name`, or why there is none.
    fn some(mut self, name: Option<&str>) -> Result<Vec<Connection>, ControlError> {
        match (self.daemons.is_empty(), self.denied.pop(), name) {
            (false, ..) => Ok(self.daemons),
            (true, Some(denied), _) => Err(denied.error),
            (true, None, Some(name)) if !self.others.is_empty() => Err(ControlError::NotFound {
                name: name.to_owned(),
                names: self.others,
            }),
            (true, None, _) => Err(ControlError::NoDaemon),
        }
    }
}

/// The only daemon of the machine, or of this namespace, or the one of a name.
///
/// # Errors
///
/// There is none, or none that this user may ask, or there are several.
pub fn find(name: Option<&str>) -> Result<Connection, ControlError> {
    only(find_all(name)?)
}

fn only(mut found: Vec<Connection>) -> Result<Connection, ControlError> {
    let mut here = found.iter().enumerate().filter(|(_, it)| it.is_here);
    let index = match (found.len(), here.next(), here.next()) {
        (1, ..) => 0,
        (_, Some((index, _)), None) => index,
        _ => {
            let names = found.iter().map(|it| it.name.clone()).collect();
            return Err(ControlError::Several(names));
        }
    };
    Ok(found.swap_remove(index))
}

fn find_in(
    folder: &Path,
    own: &str,
    name: Option<&str>,
    patience: Duration,
) -> Result<Found, ControlError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Found::default());
        }
        Err(source) => return Err(failed(folder, source)),
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut places: Vec<_> = paths.filter_map(Place::of).collect();
    places.sort_by_key(|place| (place.namespace != own, place.name(own)));
    let is_wanted = |place: &Place| {
        let (called, full) = (
            place.name(own),
            format!("{}.{}", place.device, place.namespace),
        );
        name.is_none_or(|name| [called, full].iter().any(|known| known == name))
    };
    let (wanted, others): (Vec<_>, Vec<_>) = places.into_iter().partition(is_wanted);
    let mut found = Found {
        others: others.iter().map(|place| place.name(own)).collect(),
        ..Found::default()
    };
    let connected = at_once(&wanted, |place| {
        control_socket::connect(&place.path, patience)
    });
    for (place, connected) in wanted.into_iter().zip(connected) {
        let name = place.name(own);
        let stream = match connected {
            Ok(stream) => Some(BufReader::new(stream)),
            // Left by a dead process.
            Err(error) if is_gone(&error) => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                found.denied.push(Denied {
                    name,
                    is_here: place.namespace == own,
                    error: failed(&place.path, error),
                });
                continue;
            }
        };
        found.daemons.push(Connection {
            name,
            is_here: place.namespace == own,
            path: place.path,
            stream,
        });
    }
    Ok(found)
}

/// Does the same with each at once, so that one which takes long holds up none of the others.
pub(crate) fn at_once<T: Send, R: Send>(
    all: impl IntoIterator<Item = T>,
    what: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let what = &what;
        let all = all.into_iter();
        let doing: Vec<_> = all.map(|one| scope.spawn(move || what(one))).collect();
        let done = doing.into_iter().map(|doing| match doing.join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        });
        done.collect()
    })
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}

fn failed(path: &Path, source: io::Error) -> ControlError {
    let path = path.to_owned();
    if source.kind() == io::ErrorKind::PermissionDenied {
        let group = match fs::metadata(&path) {
            Ok(metadata) if metadata.gid() != 0 => group_name(metadata.gid()),
            // Its daemon has found no such group.
            _ => format!("{GROUP}, if there was one when the daemon began"),
        };
        return ControlError::Denied { path, group };
    }
    ControlError::Io { path, source }
}

impl Connection {
    /// The process that listens; none if it takes no connections, or cannot be seen from here.
    pub fn pid(&self) -> Option<u32> {
        Holder::of(self.stream.as_ref()?.get_ref()).ok()?.pid
    }

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
        let line = match &mut self.stream {
            Some(stream) => write_request(stream.get_mut(), request)
                .and_then(|()| read_answer(stream, deadline)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        understand(line.map_err(|source| self.failed(source))?)
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

/// Reads a line until `deadline`.
fn read_answer(stream: &mut BufReader<UnixStream>, deadline: &Deadline) -> io::Result<String> {
    use io::ErrorKind::{Interrupted, InvalidData, WouldBlock};
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
            return Err(io::Error::other("it has ended"));
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

/// What a daemon has said, for a terminal: nothing but text, in lines.
pub(crate) fn plain(text: &str) -> String {
    let is_harmless = |char: char| char == '\n' || !char.is_control();
    text.chars()
        .flat_map(|char| {
            let escaped = (!is_harmless(char)).then(|| char.escape_default());
            let kept = is_harmless(char).then_some(char);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

fn understand(line: String) -> Result<(String, Body), ControlError> {
    let answer: Answer =
        serde_json::from_str(&line).map_err(|error| ControlError::Foreign(error.to_string()))?;
    match answer.body {
        Body::Error(Failure { code, message }) => Err(refusal(code, plain(&message))),
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

    use super::*;

    #[test]
    fn daemons_are_found_by_device_and_in_other_namespaces_by_both() {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let find = |name| {
            find_in(folder.path(), "1", name, ACCEPT_PATIENCE)
                .unwrap()
                .some(name)
        };
        let names =
            |found: Vec<Connection>| -> Vec<_> { found.into_iter().map(|it| it.name).collect() };
        assert!(matches!(find(None), Err(ControlError::NoDaemon)));
        drop(listen("dead.1.sock"));
        assert!(matches!(find(None), Err(ControlError::NoDaemon)));
        fs::write(folder.path().join("a.1.json"), "").unwrap();

        let _open = ["b.0.1.sock", "b.7.sock", "c.7.sock"].map(listen);
        assert_eq!(names(find(None).unwrap()), ["b.0", "b.7", "c.7"]);
        assert_eq!(names(find(Some("b.0")).unwrap()), ["b.0"]);
        assert_eq!(names(find(Some("b.0.1")).unwrap()), ["b.0"]);
        assert_eq!(names(find(Some("c.7")).unwrap()), ["c.7"]);
        assert_eq!(only(find(None).unwrap()).unwrap().name, "b.0");
        let error = find(Some("c")).unwrap_err().to_string();
        assert!(error.contains(r#"no daemon "c""#), "{error}");
        let _another = listen("a.1.sock");
        let error = only(find(None).unwrap()).unwrap_err().to_string();
        assert!(error.ends_with("name one of a, b.0, b.7, c.7"), "{error}");
        let missing = find_in(&folder.path().join("x"), "1", None, ACCEPT_PATIENCE).unwrap();
        assert!(matches!(missing.some(None), Err(ControlError::NoDaemon)));
    }

    /// One that has stopped: first it answers nobody, and then it takes no connections either.
    #[test]
    fn a_daemon_that_hangs_is_named_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let (hangs, good) = (listen("a.1.sock"), listen("b.1.sock"));
        let serve = move || {
            for stream in good.incoming().take(2) {
                let mut stream = BufReader::new(stream.unwrap());
                stream.read_line(&mut String::new()).unwrap();
                let answer = b"{\"version\":1,\"done\":{\"message\":\"fine\"}}\n";
                stream.get_mut().write_all(answer).unwrap();
            }
        };
        let serving = thread::spawn(serve);
        let short = Duration::from_millis(50);
        let ask = || {
            let mut found = find_in(folder.path(), "1", None, short).unwrap();
            let answers = ask_all(&mut found.daemons, &Request::status(), short * 20);
            let [silent, told] = answers.try_into().unwrap();
            assert!(matches!(told.unwrap().1, Body::Done(_)));
            silent.unwrap_err().to_string()
        };
        let path = folder.path().join("a.1.sock");
        let start = format!("the daemon at {} does not answer: ", path.display());
        let pid = std::process::id();
        let said = ask();
        assert!(
            said.starts_with(&format!("{start}process {pid} (")),
            "{said}"
        );
        // Who has asked it is in its queue still, where there is no more room then.
        rustix::net::listen(&hangs, 0).unwrap();
        let full = control_socket::connect(&path, short).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(ask(), format!("{start}its process is stopped, or hangs"));
        let found = find_in(folder.path(), "1", Some("a"), short).unwrap();
        let said = only(found.daemons)
            .unwrap()
            .ask(&Request::reload())
            .unwrap_err();
        assert!(matches!(said, ControlError::Silent { holder: None, .. }));
        serving.join().unwrap();
    }

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
