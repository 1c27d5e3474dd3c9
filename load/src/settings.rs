//! The server's configuration for a run.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;

use crate::identity::{self, BYSTANDER, Identities, PREFIX_LEN, SERVER};

/// A key of the server's configuration and its value, as `--set` gives it: `section.key=VALUE`, with
/// the value in TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    section: String,
    key: String,
    value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('=')
            .and_then(|(name, value)| Some((name.trim().split_once('.')?, value.trim())));
        match parts {
            Some(((section, key), value)) if !value.is_empty() => Ok(Self {
                section: section.to_owned(),
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(format!(
                "`{text}` is not SECTION.KEY=VALUE, such as limits.max_handshakes=1024"
            )),
        }
    }
}

/// A server's configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    identities: Identities,
    peers: usize,
}

impl Settings {
    /// For a server at `listen` with so many peers and a bystander, whose other values are the defaults where the run
    /// does not need others. `set` wins over all of it.
    pub(crate) fn new(
        identities: Identities,
        peers: usize,
        listen: SocketAddr,
        mtu: u16,
        set: &[Setting],
    ) -> Self {
        let mut settings = Self {
            sections: BTreeMap::new(),
            identities,
            peers,
        };
        let key = identities.server().to_base64();
        settings.put("server", "bind_address", quoted(listen.ip()));
        settings.put("server", "port", listen.port());
        settings.put("server", "max_connections", (peers + 1).max(1000));
        let address = format!("{SERVER}/{PREFIX_LEN}");
        settings.put("network", "tun_address", quoted(address));
        settings.put("network", "mtu", mtu);
        // Nobody is behind this server.
        settings.put("network", "nat", false);
        settings.put("network", "client_to_client", true);
        settings.put("security", "private_key", quoted(&*key));
        for setting in set {
            settings.put(&setting.section, &setting.key, &setting.value);
        }
        settings
    }

    fn put(&mut self, section: &str, key: &str, value: impl Display) {
        let section = self.sections.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), value.to_string());
    }

    /// Writes it to a file that only its owner can read.
    ///
    /// # Errors
    ///
    /// If that cannot be done.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = BufWriter::new(file.open(path)?);
        write!(file, "{self}")?;
        file.flush()
    }
}

impl Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, section) in &self.sections {
            writeln!(f, "[{name}]")?;
            for (key, value) in section {
                writeln!(f, "{key} = {value}")?;
            }
        }
        for peer in (0..self.peers).chain([BYSTANDER]) {
            let key = self.identities.client(peer).public_key();
            writeln!(f, "[[peers]]")?;
            writeln!(f, "name = \"client{peer}\"")?;
            writeln!(f, "public_key = \"{key}\"")?;
            writeln!(f, "address = \"{}\"", identity::address(peer))?;
        }
        Ok(())
    }
}

fn quoted(value: impl Display) -> String {
    format!("\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_wins_over_what_the_run_needs() {
        let set = ["network.mtu=9000", "limits.memory = 8388608"].map(|text| text.parse().unwrap());
        let listen = SocketAddr::from(([127, 0, 0, 1], 8443));
        let text = Settings::new(Identities::new(1), 2, listen, 1400, &set).to_string();
        assert!(text.contains("[limits]\nmemory = 8388608\n"), "{text}");
        assert!(
            text.contains("mtu = 9000\n") && !text.contains("1400"),
            "{text}"
        );
        let bystanders = 1;
        assert_eq!(text.matches("[[peers]]").count(), 2 + bystanders);
        assert!(text.contains("address = \"10.0.0.3\"\n"), "{text}");
    }

    #[test]
    fn what_is_no_setting_is_said() {
        for text in ["mtu=9000", "network.mtu", "network.mtu=", "network=9"] {
            let error = text.parse::<Setting>().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
