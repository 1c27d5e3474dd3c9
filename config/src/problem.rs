//! What is wrong with a file, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A place in a text file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// One thing that is wrong, or worth a warning, in a configuration file.
///
/// Displayed as `server.toml:12:8: network.mtu: expected 576 to 9000, found 100`. Never contains
/// a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file, as it was named by the caller.
    pub file: PathBuf,
    /// Where; none for a key that is missing.
    pub position: Option<Position>,
    /// The key with its section, such as `network.mtu`; empty for an error of syntax.
    pub key: String,
    /// What was expected, what was found, and the nearest valid name if there is one.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself cannot be read; what it says is unknown.
    #[error("{}: cannot read: {source}", path.display())]
    Unreadable {
        /// The configuration file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file can be read and is wrong. Displayed one problem per line, in the file's order.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// The problems of a file that could be read; empty if it could not.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Invalid(problems) => problems,
        }
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(position: Option<Position>, key: &str) -> Problem {
        Problem {
            file: "server.toml".into(),
            position,
            key: key.to_owned(),
            message: "expected 576 to 9000, found 100".to_owned(),
        }
    }

    #[test]
    fn problems_print_file_line_column_key_and_message_one_per_line() {
        let position = Some(Position {
            line: 12,
            column: 8,
        });
        let error = ConfigError::Invalid(vec![
            problem(position, "network.mtu"),
            problem(None, "network.mtu"),
            problem(position, ""),
        ]);
        assert_eq!(
            error.to_string(),
            "server.toml:12:8: network.mtu: expected 576 to 9000, found 100\n\
             server.toml: network.mtu: expected 576 to 9000, found 100\n\
             server.toml:12:8: expected 576 to 9000, found 100"
        );
    }
}
