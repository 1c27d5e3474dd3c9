//! Configuration files for the daemons.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// A configuration file in the making. Values are TOML, so strings need their quotes.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    peers: Vec<BTreeMap<String, String>>,
}

impl Settings {
    /// Sets `key`, written `section.key`, in place of what it was.
    pub fn set(&mut self, key: &str, value: impl Display) -> &mut Self {
        let (section, key) = key.split_once('.').unwrap();
        let section = self.sections.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), value.to_string());
        self
    }

    /// Removes `key`, written `section.key`, so that its default applies.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        let (section, key) = key.split_once('.').unwrap();
        if let Some(section) = self.sections.get_mut(section) {
            section.remove(key);
        }
        self
    }

    /// The table `[[peers]]` number `index`, made if it is the next one.
    pub fn peer(&mut self, index: usize) -> &mut BTreeMap<String, String> {
        if index == self.peers.len() {
            self.peers.push(BTreeMap::new());
        }
        &mut self.peers[index]
    }

    /// Forgets the peers from number `len` on.
    pub fn truncate_peers(&mut self, len: usize) -> &mut Self {
        self.peers.truncate(len);
        self
    }
}

impl Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, section) in &self.sections {
            writeln!(f, "[{name}]")?;
            write_keys(f, section)?;
        }
        for peer in &self.peers {
            writeln!(f, "[[peers]]")?;
            write_keys(f, peer)?;
        }
        Ok(())
    }
}

fn write_keys(f: &mut fmt::Formatter<'_>, keys: &BTreeMap<String, String>) -> fmt::Result {
    keys.iter()
        .try_for_each(|(key, value)| writeln!(f, "{key} = {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_values_replace_earlier_ones() {
        let mut settings = Settings::default();
        settings.set("network.mtu", 1400).set("server.port", 8443);
        settings.set("network.mtu", 1300).unset("server.port");
        settings.peer(0).insert("name".into(), "\"a\"".into());
        settings.peer(1);
        settings.truncate_peers(1);
        let text = "[network]\nmtu = 1300\n[server]\n[[peers]]\nname = \"a\"\n";
        assert_eq!(settings.to_string(), text);
    }
}
