//! Files: the configuration itself and the key files it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;
use zeroize::Zeroizing;

use crate::duplicate::{self, Duplicate};
use crate::problem::{ConfigError, Position, Problem};

/// 65 000 prefixes with a peer each are some 12 MB; more than this is not a configuration.
const MAX_CONFIG_BYTES: u64 = 64 * 1024 * 1024;
/// A key is 44 characters and a line feed. The rest is room for stray white space.
const MAX_KEY_BYTES: u64 = 4096;

/// What the `toml` crate says of a key that is given again.
const DUPLICATE_KEY: &str = "duplicate key";

/// A configuration file's text, and what is needed to speak about it.
pub(crate) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    mode: Option<u32>,
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(path: &'a Path, text: &'a str, mode: Option<u32>) -> Self {
        let text = without_bom(text);
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0)
            .chain(ends.map(|(index, _)| index + 1))
            .collect();
        Self {
            path,
            text,
            mode,
            line_starts,
        }
    }

    /// Parses the text, or reports every error of syntax.
    pub(crate) fn parse(&self) -> Result<Spanned<DeTable<'a>>, ConfigError> {
        let (tree, mut errors) = DeTable::parse_recoverable(self.text);
        if errors.is_empty() {
            return Ok(tree);
        }
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let duplicates = self.duplicates(&errors);
        let problems = errors.iter().map(|error| {
            let start = error.span().map(|span| span.start);
            let duplicate = start.and_then(|start| duplicates.get(&start));
            let message = match duplicate.and_then(|duplicate| duplicate.first) {
                Some(first) => {
                    let line = self.position(first).line;
                    format!("{}; first in line {line}", error.message())
                }
                None => error.message().to_owned(),
            };
            Problem {
                file: self.path.to_owned(),
                position: start.map(|start| self.position(start)),
                key: duplicate
                    .map(|duplicate| duplicate.key.clone())
                    .unwrap_or_default(),
                message,
            }
        });
        Err(ConfigError::Invalid(problems.collect()))
    }

    fn duplicates(&self, errors: &[toml::de::Error]) -> BTreeMap<usize, Duplicate> {
        let duplicate = errors
            .iter()
            .filter(|error| error.message() == DUPLICATE_KEY);
        let offsets: BTreeSet<usize> = duplicate
            .filter_map(|error| error.span())
            .map(|span| span.start)
            .collect();
        if offsets.is_empty() {
            return BTreeMap::new();
        }
        duplicate::find(self.text, &offsets)
    }

    pub(crate) fn position(&self, offset: usize) -> Position {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = line
            .checked_sub(1)
            .and_then(|index| self.line_starts.get(index))
            .copied()
            .unwrap_or(0);
        let before = self.text.as_bytes().get(start..offset).unwrap_or_default();
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        Position { line, column }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// Whether others than the file's owner may open it; never true where modes are unknown.
    pub(crate) fn exposed_mode(&self) -> Option<u32> {
        self.mode.filter(|mode| mode & 0o077 != 0)
    }

    /// A path in the configuration counts from the configuration file's folder.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        match self.path.parent() {
            Some(folder) => folder.join(path),
            None => PathBuf::from(path),
        }
    }
}

/// Reads a configuration file, with its permission bits where the system has them.
pub(crate) fn read_config(path: &Path) -> Result<(Zeroizing<String>, Option<u32>), ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let (bytes, metadata) = read_file(path, MAX_CONFIG_BYTES).map_err(unreadable)?;
    let reader = TheReader::of_this_process();
    if let Some(message) = reader.distrusts(&metadata) {
        return Err(ConfigError::Invalid(vec![Problem {
            file: path.to_owned(),
            position: None,
            key: String::new(),
            message,
        }]));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok((
            Zeroizing::new(text.to_owned()),
            reader.secrecy_mode(path, &metadata),
        )),
        Err(error) => {
            let valid = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or(&[]));
            let valid = Zeroizing::new(valid.into_owned());
            Err(ConfigError::Invalid(vec![Problem {
                file: path.to_owned(),
                position: Some(Source::new(path, &valid, None).position(valid.len())),
                key: String::new(),
                message: "expected UTF-8 text".to_owned(),
            }]))
        }
    }
}

/// Whether whoever reads a folder of configuration files may trust who puts files into it.
///
/// # Errors
///
/// If root reads it, and somebody else can change it; if nobody can look at it.
pub(crate) fn check_folder(path: &Path) -> Result<(), ConfigError> {
    let metadata = fs::metadata(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    match TheReader::of_this_process().distrusts(&metadata) {
        None => Ok(()),
        Some(message) => Err(ConfigError::Invalid(vec![Problem {
            file: path.to_owned(),
            position: None,
            key: String::new(),
            message: message.replacen("a file", "a folder", 1),
        }])),
    }
}

/// Permission bits of a file that may not exist (yet).
pub(crate) fn mode_of(path: &Path) -> Option<u32> {
    let metadata = fs::metadata(path).ok()?;
    TheReader::of_this_process().secrecy_mode(path, &metadata)
}

/// Why a key file's text cannot be had.
pub(crate) enum KeyFileError {
    Io(io::Error),
    /// Group or others have access; holds the permission bits.
    Exposed(u32),
    /// Somebody else could change it; holds what is wrong.
    Untrusted(String),
    NotText,
}

/// Reads a file that holds one key and that nobody but its owner may open.
pub(crate) fn read_key(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let (bytes, metadata) = read_file(path, MAX_KEY_BYTES).map_err(KeyFileError::Io)?;
    let reader = TheReader::of_this_process();
    let mode = reader.secrecy_mode(path, &metadata);
    if let Some(mode) = mode.filter(|mode| mode & 0o077 != 0) {
        return Err(KeyFileError::Exposed(mode));
    }
    if let Some(message) = reader.distrusts(&metadata) {
        return Err(KeyFileError::Untrusted(message));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(without_bom(text).to_owned())),
        Err(_) => Err(KeyFileError::NotText),
    }
}

/// The text without the byte order mark that some editors put before UTF-8.
pub fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The text of a file that holds one key and that nobody but its owner may open or change, as for
/// a key file that a configuration names; none if there is no file.
///
/// # Errors
///
/// When it cannot be read, is no regular file, or others can read or change it.
pub fn read_key_file(path: &Path) -> Result<Option<Zeroizing<String>>, ConfigError> {
    let message = match read_key(path) {
        Ok(text) => return Ok(Some(text)),
        Err(KeyFileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(KeyFileError::Io(source)) => {
            return Err(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
        Err(KeyFileError::Exposed(mode)) => format!("expected mode 0600, found {mode:04o}"),
        Err(KeyFileError::Untrusted(message)) => message,
        Err(KeyFileError::NotText) => "expected a key, found no text".to_owned(),
    };
    Err(ConfigError::Invalid(vec![Problem {
        file: path.to_owned(),
        position: None,
        key: String::new(),
        message,
    }]))
}

fn read_file(path: &Path, max: u64) -> io::Result<(Zeroizing<Vec<u8>>, Metadata)> {
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() > max {
        let text = format!("larger than {max} bytes");
        return Err(io::Error::other(text));
    }
    // The right capacity from the start: growing would leave copies of secrets behind.
    let capacity = usize::try_from(metadata.len()).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(max).read_to_end(&mut bytes)?;
    Ok((bytes, metadata))
}

/// Who reads a file, which decides whom it may belong to.
#[derive(Clone, Debug, Default)]
struct TheReader {
    is_root: bool,
    /// Who called `sudo`: his files are what he asked to be read.
    called_by: Option<u32>,
    /// Where systemd puts the credentials of a service.
    credentials: Option<PathBuf>,
}

#[cfg(unix)]
impl TheReader {
    fn of_this_process() -> Self {
        let caller = std::env::var("SUDO_UID").ok();
        Self {
            is_root: rustix::process::geteuid().is_root(),
            called_by: caller.and_then(|uid| uid.parse().ok()),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }

    /// What is wrong with a file that root reads and somebody else can change.
    fn distrusts(&self, metadata: &Metadata) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let (owner, mode) = (metadata.uid(), mode(metadata));
        let is_foreign = owner != 0 && Some(owner) != self.called_by;
        (self.is_root && (is_foreign || mode & 0o022 != 0)).then(|| {
            format!(
                "expected a file that only root can change, found one of user {owner} with mode \
                 {mode:04o}"
            )
        })
    }

    /// Permission bits, but that a credential's group is not counted if it can only read: systemd
    /// 257 lets the service's user in by an access list, whose mask these bits show.
    #[expect(clippy::unnecessary_wraps, reason = "other systems have no modes")]
    fn secrecy_mode(&self, path: &Path, metadata: &Metadata) -> Option<u32> {
        use std::os::unix::fs::MetadataExt as _;
        let mode = mode(metadata);
        let is_credential = self.credentials.as_ref().is_some_and(|credentials| {
            let folder = path.parent().map(Path::canonicalize);
            matches!((folder, credentials.canonicalize()), (Some(Ok(a)), Ok(b)) if a == b)
        });
        if is_credential && metadata.uid() == 0 && mode & 0o077 == 0o040 {
            return Some(mode & !0o040);
        }
        Some(mode)
    }
}

#[cfg(unix)]
fn mode(metadata: &Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o7777
}

#[cfg(not(unix))]
impl TheReader {
    fn of_this_process() -> Self {
        Self::default()
    }

    fn distrusts(&self, _metadata: &Metadata) -> Option<String> {
        None
    }

    fn secrecy_mode(&self, _path: &Path, _metadata: &Metadata) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, key};

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = Source::new(Path::new("a.toml"), "ab\nü = 1\n\n", None);
        let at = |offset| {
            let Position { line, column } = source.position(offset);
            (line, column)
        };
        assert_eq!(at(0), (1, 1));
        assert_eq!(at(2), (1, 3));
        assert_eq!(at(3), (2, 1));
        assert_eq!(at(5), (2, 2), "ü is one character of two bytes");
        assert_eq!(at(9), (2, 6));
        assert_eq!(at(10), (3, 1));
        assert_eq!(at(11), (4, 1));
        assert_eq!(at(1000).0, 4);
    }

    #[test]
    fn every_error_of_syntax_is_reported() {
        let text = "a = \nport = 1\n\nport = 2\n";
        let source = Source::new(Path::new("a.toml"), text, None);
        let error = source.parse().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.toml:1:5: string values must be quoted, expected literal string\n\
             a.toml:4:1: port: duplicate key; first in line 2"
        );
    }

    #[test]
    fn a_file_that_is_not_utf8_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, b"a = 1\nb = \xff\n").unwrap();
        let error = read_config(&path).unwrap_err();
        let expected = format!("{}:2:5: expected UTF-8 text", path.display());
        assert_eq!(error.to_string(), expected);
    }

    const ROOT: TheReader = TheReader {
        is_root: true,
        called_by: None,
        credentials: None,
    };

    /// A file with this mode, which belongs to whoever runs the test.
    fn file(mode: u32) -> (tempfile::TempDir, PathBuf, Metadata) {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        (folder, path, metadata)
    }

    #[test]
    fn root_distrusts_what_others_can_change() {
        use std::os::unix::fs::MetadataExt as _;
        for (mode, is_good) in [
            (0o600, true),
            (0o644, true),
            (0o400, true),
            (0o620, false),
            (0o602, false),
            (0o666, false),
        ] {
            let (_folder, _, metadata) = file(mode);
            let owner = metadata.uid();
            let as_owner = TheReader {
                called_by: Some(owner),
                ..ROOT
            };
            let expected = format!(
                "expected a file that only root can change, found one of user {owner} with mode \
                 {mode:04o}"
            );
            let expected = (!is_good).then_some(expected);
            assert_eq!(as_owner.distrusts(&metadata), expected);
            assert_eq!(TheReader::default().distrusts(&metadata), None);
        }
    }

    #[test]
    fn root_distrusts_the_files_of_others_but_for_the_caller_of_sudo() {
        let (_folder, path, metadata) = file(0o600);
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
            // Whoever is not root owns the file himself.
            assert!(ROOT.distrusts(&metadata).is_some());
            return;
        }
        let metadata = fs::metadata(&path).unwrap();
        let message = ROOT.distrusts(&metadata).unwrap();
        assert!(
            message.ends_with("of user 12345 with mode 0600"),
            "{message}"
        );
        let called_by = |uid| TheReader {
            called_by: Some(uid),
            ..ROOT
        };
        assert_eq!(called_by(12_345).distrusts(&metadata), None);
        assert!(called_by(12_346).distrusts(&metadata).is_some());
    }

    #[test]
    fn a_credential_may_be_readable_for_its_group_and_nothing_else_may() {
        for (mode, secrecy) in [
            (0o440, 0o400),
            (0o400, 0o400),
            (0o460, 0o460),
            (0o444, 0o444),
        ] {
            let (folder, path, metadata) = file(mode);
            let reader = |credentials: &Path| TheReader {
                credentials: Some(credentials.to_owned()),
                ..ROOT
            };
            let is_roots = ROOT.distrusts(&metadata).is_none() || mode & 0o022 != 0;
            let expected = if is_roots { secrecy } else { mode };
            let inside = reader(folder.path()).secrecy_mode(&path, &metadata);
            assert_eq!(inside, Some(expected), "{mode:o}");
            for reader in [ROOT, reader(Path::new("/")), reader(Path::new("/absent"))] {
                assert_eq!(reader.secrecy_mode(&path, &metadata), Some(mode));
            }
        }
    }

    #[test]
    fn unreadable_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("absent")] {
            let error = read_config(&path).unwrap_err();
            assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
            assert!(error.problems().is_empty());
            let start = format!("{}: cannot read: ", path.display());
            assert!(error.to_string().starts_with(&start), "{error}");
        }
    }

    #[test]
    fn paths_count_from_the_configuration_files_folder() {
        let source = Source::new(Path::new("/etc/lostlove/server.toml"), "", None);
        assert_eq!(source.resolve("a.key"), Path::new("/etc/lostlove/a.key"));
        assert_eq!(source.resolve("/k/a.key"), Path::new("/k/a.key"));
        let source = Source::new(Path::new("server.toml"), "", None);
        assert_eq!(source.resolve("a.key"), Path::new("a.key"));
    }

    /// Some editors put one before their text.
    #[test]
    fn a_byte_order_mark_before_a_file_is_passed_over() {
        let folder = Folder::new();
        let text = "\u{feff}[security]\nprivate_key_file = 'marked.key'\n";
        folder.write(
            "marked.key",
            &format!("\u{feff}{}\r\n", *key(7).to_base64()),
        );
        let settings = folder.server(text).unwrap();
        let found = settings.endpoint.server.secret_key.public_key();
        assert_eq!(found, key(7).public_key());
        assert_eq!(
            folder.server_errors("\u{feff}prot = 1\n"),
            "server.toml:1:1: prot: unknown section"
        );
        assert_eq!(
            folder.server_errors("\u{feff}port\n"),
            folder.server_errors("port\n")
        );
    }
}
