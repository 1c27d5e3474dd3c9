//! `peers.d`: a file for each peer, named after it, beside a server's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;
use zeroize::Zeroizing;

use crate::peers::PeerFile;
use crate::problem::{ConfigError, Problem};
use crate::reader::Reader;
use crate::reader::value::{PEER_NAME, is_peer_name, quoted};
use crate::source::{Source, check_folder, read_config};

/// The folder for the files of peers, beside the server's configuration.
pub const PEERS_FOLDER: &str = "peers.d";
const EXTENSION: &str = "toml";

/// The text of one peer's file.
#[derive(Clone)]
pub(crate) struct PeerText {
    path: PathBuf,
    name: String,
    text: Zeroizing<String>,
    mode: Option<u32>,
}

impl PeerText {
    pub(crate) const fn new(
        path: PathBuf,
        name: String,
        text: Zeroizing<String>,
        mode: Option<u32>,
    ) -> Self {
        Self {
            path,
            name,
            text,
            mode,
        }
    }

    pub(crate) fn source(&self) -> Source<'_> {
        Source::new(&self.path, &self.text, self.mode)
    }

    /// The peer's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn mode(&self) -> Option<u32> {
        self.mode
    }
}

/// The file of the peer with this name, beside the server's configuration.
pub fn peer_path(config: &Path, name: &str) -> PathBuf {
    let folder = config.with_file_name(PEERS_FOLDER);
    folder.join(format!("{name}.{EXTENSION}"))
}

/// Reads every file `NAME.toml` in the folder, in the order of their names. Others, and those that
/// begin with a dot, are none of ours: editors and package managers leave such.
///
/// # Errors
///
/// If the folder or a file cannot be read or is not to be trusted, or a name is none.
pub(crate) fn read(config: &Path) -> Result<Vec<PeerText>, ConfigError> {
    let folder = config.with_file_name(PEERS_FOLDER);
    let unreadable = |source| ConfigError::Unreadable {
        path: folder.clone(),
        source,
    };
    let entries = match fs::read_dir(&folder) {
        // A link that leads nowhere is no wish to have no peers.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_symlink() => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(unreadable)?,
    };
    check_folder(&folder)?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|it| it == EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    let mut texts = Vec::with_capacity(paths.len());
    let mut problems = Vec::new();
    for path in paths {
        match read_one(path) {
            Ok(text) => texts.extend(text),
            Err(ConfigError::Invalid(found)) => problems.extend(found),
            Err(error @ ConfigError::Unreadable { .. }) => return Err(error),
        }
    }
    if problems.is_empty() {
        Ok(texts)
    } else {
        Err(ConfigError::Invalid(problems))
    }
}

/// None for a file that has gone meanwhile, with its peer.
fn read_one(path: PathBuf) -> Result<Option<PeerText>, ConfigError> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let Some(name) = stem.filter(|name| is_peer_name(name)) else {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let message = format!(
            "the file's name: expected {PEER_NAME}, found {}",
            quoted(&name)
        );
        return Err(ConfigError::Invalid(vec![Problem {
            file: path,
            position: None,
            key: String::new(),
            message,
        }]));
    };
    let name = name.to_owned();
    match read_config(&path) {
        Ok((text, mode)) => Ok(Some(PeerText::new(path, name, text, mode))),
        Err(ConfigError::Unreadable { source, .. })
            if source.kind() == io::ErrorKind::NotFound && !path.is_symlink() =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Parses them all.
///
/// # Errors
///
/// With every error of syntax.
pub(crate) fn parse<'a>(sources: &[Source<'a>]) -> Result<Vec<Spanned<DeTable<'a>>>, ConfigError> {
    let mut trees = Vec::with_capacity(sources.len());
    let mut problems = Vec::new();
    for source in sources {
        match source.parse() {
            Ok(tree) => trees.push(tree),
            Err(ConfigError::Invalid(found)) => problems.extend(found),
            Err(error @ ConfigError::Unreadable { .. }) => return Err(error),
        }
    }
    if problems.is_empty() {
        Ok(trees)
    } else {
        Err(ConfigError::Invalid(problems))
    }
}

/// Makes each file a section for the reader.
pub(crate) fn enter<'t>(
    reader: &mut Reader<'t>,
    texts: &'t [PeerText],
    (sources, trees): (&'t [Source<'t>], &'t [Spanned<DeTable<'t>>]),
) -> Vec<PeerFile<'t>> {
    let files = texts.iter().zip(sources).zip(trees);
    let files = files.map(|((text, source), tree)| PeerFile {
        name: &text.name,
        section: reader.file(source, "peers", tree.get_ref()),
    });
    files.collect()
}
