//! Which daemons there are: whose sockets lie in the folder, and which of them one can connect to.

use std::fs;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lostlove_system::control_socket::{self, FOLDER, SUFFIX};
use lostlove_system::net::namespace_name;

use super::error::failed;
use super::{Connection, ControlError, REST_PATIENCE, at_once};

/// How long a daemon may take to accept a connection, while others come, too.
pub(super) const ACCEPT_PATIENCE: Duration = Duration::from_secs(2);

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

/// All daemons of the machine, or those of a name: one at least that can be asked.
///
/// # Errors
///
/// There is none, or none that this user may ask.
pub fn find_all(name: Option<&str>) -> Result<Found, ControlError> {
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
    /// One daemon of `name` at least that can be asked, or why there is none.
    fn some(mut self, name: Option<&str>) -> Result<Self, ControlError> {
        if !self.daemons.is_empty() {
            return Ok(self);
        }
        match (self.denied.pop(), name) {
            (Some(denied), _) => Err(denied.error),
            (None, Some(name)) if !self.others.is_empty() => Err(ControlError::NotFound {
                name: name.to_owned(),
                names: self.others,
            }),
            (None, _) => Err(ControlError::NoDaemon),
        }
    }

    /// The only one, or the only one of this namespace. Who may not be asked counts: the order may be
    /// meant for it.
    fn only(self) -> Result<Connection, ControlError> {
        let daemons = self.daemons.into_iter();
        let daemons = daemons.map(|it| (it.name.clone(), it.is_here, Ok(it)));
        let denied = self.denied.into_iter();
        let denied = denied.map(|it| (it.name, it.is_here, Err(it.error)));
        let mut all: Vec<_> = daemons.chain(denied).collect();
        let mut here = (0..all.len()).filter(|index| all.len() == 1 || all[*index].1);
        if let (Some(index), None) = (here.next(), here.next()) {
            return all.swap_remove(index).2;
        }
        let names = all.into_iter().map(|(name, ..)| name).collect();
        Err(ControlError::Several(names))
    }
}

/// The only daemon of the machine, or of this namespace, or the one of a name.
///
/// # Errors
///
/// There is none, or none that this user may ask, or there are several.
pub fn find(name: Option<&str>) -> Result<Connection, ControlError> {
    find_all(name)?.only()
}

pub(super) fn find_in(
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

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use lostlove_host::control::protocol::{Body, Request};

    use super::super::ask_all;
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
            |found: Found| -> Vec<_> { found.daemons.into_iter().map(|it| it.name).collect() };
        assert!(matches!(find(None), Err(ControlError::NoDaemon)));
        drop(listen("dead.1.sock"));
        assert!(matches!(find(None), Err(ControlError::NoDaemon)));
        fs::write(folder.path().join("a.1.json"), "").unwrap();

        let _open = ["b.0.1.sock", "b.7.sock", "c.7.sock"].map(listen);
        assert_eq!(names(find(None).unwrap()), ["b.0", "b.7", "c.7"]);
        assert_eq!(names(find(Some("b.0")).unwrap()), ["b.0"]);
        assert_eq!(names(find(Some("b.0.1")).unwrap()), ["b.0"]);
        assert_eq!(names(find(Some("c.7")).unwrap()), ["c.7"]);
        assert_eq!(find(None).unwrap().only().unwrap().name, "b.0");
        let error = find(Some("c")).unwrap_err().to_string();
        assert!(error.contains(r#"no daemon "c""#), "{error}");
        let _another = listen("a.1.sock");
        let error = find(None).unwrap().only().unwrap_err().to_string();
        assert!(error.ends_with("name one of a, b.0, b.7, c.7"), "{error}");
        let missing = find_in(&folder.path().join("x"), "1", None, ACCEPT_PATIENCE).unwrap();
        assert!(matches!(missing.some(None), Err(ControlError::NoDaemon)));
    }

    /// One that may not be asked may be the one that was meant.
    #[test]
    fn an_order_does_not_go_to_another_than_who_may_not_be_asked() {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let _open = ["a.1.sock", "b.7.sock"].map(listen);
        let found = |denied: &[(&str, bool)]| {
            let mut found = find_in(folder.path(), "1", None, ACCEPT_PATIENCE).unwrap();
            let denied = denied.iter().map(|(name, is_here)| Denied {
                name: (*name).to_owned(),
                is_here: *is_here,
                error: failed(folder.path(), io::ErrorKind::PermissionDenied.into()),
            });
            found.denied = denied.collect();
            found
        };
        assert_eq!(found(&[("c.7", false)]).only().unwrap().name, "a");
        let several = found(&[("c", true)]).only().unwrap_err().to_string();
        assert!(several.ends_with("name one of a, b.7, c"), "{several}");

        fs::remove_file(folder.path().join("a.1.sock")).unwrap();
        let denied = found(&[("c", true)]).only();
        assert!(matches!(denied, Err(ControlError::Denied { .. })));
        let several = found(&[("c.7", false)]).only();
        assert!(matches!(several, Err(ControlError::Several(_))));
        let several = found(&[("c", true), ("d", true)]).only();
        assert!(matches!(several, Err(ControlError::Several(_))));
        assert_eq!(found(&[]).only().unwrap().name, "b.7");
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
        let said = found.only().unwrap().ask(&Request::reload()).unwrap_err();
        assert!(matches!(said, ControlError::Silent { holder: None, .. }));
        serving.join().unwrap();
    }
}
