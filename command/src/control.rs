//! The daemons of this machine, found and asked through their control sockets.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lostlove_host::args::Exit;
use lostlove_host::control::protocol::{Answer, Body, ErrorCode, Failure, Request};
use lostlove_system::control_socket::{self, FOLDER, GROUP, Holder, SUFFIX, group_name};
use lostlove_system::net::namespace_name;

/// How long a daemon may take. It gives up by itself sooner.
const PATIENCE: Duration = Duration::from_secs(15);

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
    /// It refuses.
    #[error("{0}")]
    Refused(String),
    /// What it says cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
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

/// A daemon that answers.
#[derive(Debug)]
pub struct Connection {
    /// What it is called by here.
    pub name: String,
    is_here: bool,
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

/// All daemons of the machine, or those of a name.
///
/// # Errors
///
/// There is none, or none that this user may ask.
pub fn find_all(name: Option<&str>) -> Result<Vec<Connection>, ControlError> {
    find_in(Path::new(FOLDER), &namespace_name(), name)
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

/// A daemon whose socket is there.
#[derive(Debug)]
pub struct Found {
    /// What it is called by here.
    pub name: String,
    /// Whether it is in this network namespace.
    pub is_here: bool,
    /// The way to ask it, or why it cannot be asked.
    pub connection: Result<Connection, ControlError>,
}

/// Each daemon of the machine, whether it can be asked or not; none of those that have died.
///
/// # Errors
///
/// Nobody can look.
pub fn find_each() -> Result<Vec<Found>, ControlError> {
    each_in(Path::new(FOLDER), &namespace_name())
}

fn each_in(folder: &Path, own: &str) -> Result<Vec<Found>, ControlError> {
    let places = match places(folder, own) {
        Err(ControlError::NoDaemon) => return Ok(Vec::new()),
        places => places?,
    };
    let found = places.into_iter().filter_map(|place| {
        Some(Found {
            name: place.name(own),
            is_here: place.namespace == own,
            connection: open(place, own).transpose()?,
        })
    });
    Ok(found.collect())
}

/// The sockets that there are, those of this namespace first.
fn places(folder: &Path, own: &str) -> Result<Vec<Place>, ControlError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ControlError::NoDaemon);
        }
        Err(source) => return Err(failed(folder, source)),
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut places: Vec<_> = paths.filter_map(Place::of).collect();
    places.sort_by_key(|place| (place.namespace != own, place.name(own)));
    Ok(places)
}

/// The way to a daemon; none if a dead process has left the socket.
fn open(place: Place, own: &str) -> Result<Option<Connection>, ControlError> {
    match connect(&place.path) {
        Ok(stream) => Ok(Some(Connection {
            name: place.name(own),
            is_here: place.namespace == own,
            path: place.path,
            stream,
        })),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed(&place.path, error)),
    }
}

fn find_in(folder: &Path, own: &str, name: Option<&str>) -> Result<Vec<Connection>, ControlError> {
    let is_wanted = |place: &Place| {
        let (called, full) = (
            place.name(own),
            format!("{}.{}", place.device, place.namespace),
        );
        name.is_none_or(|name| [called, full].iter().any(|known| known == name))
    };
    let (mut found, mut others, mut denied) = (Vec::new(), Vec::new(), None);
    for place in places(folder, own)? {
        if !is_wanted(&place) {
            others.push(place.name(own));
            continue;
        }
        match open(place, own) {
            Ok(connection) => found.extend(connection),
            Err(error) => denied = Some(error),
        }
    }
    match (found.is_empty(), denied, name) {
        (false, ..) => Ok(found),
        (true, Some(error), _) => Err(error),
        (true, None, Some(name)) if !others.is_empty() => Err(ControlError::NotFound {
            name: name.to_owned(),
            names: others,
        }),
        (true, None, _) => Err(ControlError::NoDaemon),
    }
}

fn connect(path: &Path) -> io::Result<BufReader<UnixStream>> {
    let stream = control_socket::connect(path)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
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
    let source = match source.kind() {
        io::ErrorKind::WouldBlock => io::Error::other("it does not answer"),
        _ => source,
    };
    ControlError::Io { path, source }
}

impl Connection {
    /// Waits for answers no longer than this.
    ///
    /// # Errors
    ///
    /// The system's answer.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))
    }

    /// The daemon's process; none if it is in a PID namespace that cannot be seen from here.
    pub fn pid(&self) -> Option<u32> {
        Holder::of(self.stream.get_ref()).ok()?.pid
    }

    /// Asks, and returns what was said, as a line and as what it means.
    ///
    /// # Errors
    ///
    /// The daemon has gone, or it refuses.
    pub fn ask(&mut self, request: &Request) -> Result<(String, Body), ControlError> {
        let line = self.exchange(request);
        understand(line.map_err(|source| failed(&self.path, source))?)
    }

    fn exchange(&mut self, request: &Request) -> io::Result<String> {
        let mut bytes = serde_json::to_vec(request).map_err(io::Error::other)?;
        bytes.push(b'\n');
        self.stream.get_mut().write_all(&bytes)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::other("it has ended"));
        }
        Ok(line)
    }
}

fn understand(line: String) -> Result<(String, Body), ControlError> {
    let answer: Answer =
        serde_json::from_str(&line).map_err(|error| ControlError::Foreign(error.to_string()))?;
    match answer.body {
        Body::Error(Failure { code, message }) => Err(match code {
            ErrorCode::UnknownRequest | ErrorCode::UnsupportedVersion => {
                ControlError::Older(message)
            }
            ErrorCode::BadConfiguration => ControlError::BadConfiguration(message),
            _ => ControlError::Refused(message),
        }),
        body => Ok((line, body)),
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
        let find = |name| find_in(folder.path(), "1", name);
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
        let missing = find_in(&folder.path().join("x"), "1", None);
        assert!(matches!(missing, Err(ControlError::NoDaemon)));
    }

    #[test]
    fn each_daemon_is_found_also_where_one_cannot_be_asked() {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let find = || each_in(folder.path(), "1").unwrap();
        assert!(find().is_empty());
        assert!(each_in(&folder.path().join("x"), "1").unwrap().is_empty());
        drop(listen("dead.1.sock"));
        let _open = ["a.1.sock", "b.7.sock"].map(listen);
        // It does not look, and so many wait that no more may.
        let _stopped = listen("c.1.sock");
        let path = folder.path().join("c.1.sock");
        let waiting = std::iter::from_fn(|| control_socket::connect(&path).ok());
        let _waiting: Vec<_> = waiting.collect();

        let found = find();
        let told: Vec<_> = found
            .iter()
            .map(|it| (it.name.as_str(), it.is_here))
            .collect();
        assert_eq!(told, [("a", true), ("c", true), ("b.7", false)]);
        assert_eq!(
            found[0].connection.as_ref().unwrap().pid(),
            Some(std::process::id())
        );
        let error = found[1].connection.as_ref().unwrap_err().to_string();
        assert!(error.ends_with("it does not answer"), "{error}");
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
