//! Reads typed values out of a parsed file and notes everything that is wrong on the way.

pub(crate) mod secret;
pub(crate) mod value;

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use toml::de::{DeTable, DeValue};

use crate::problem::{ConfigError, Problem};
use crate::source::Source;

/// Where a value stands.
#[derive(Clone, Debug)]
pub(crate) struct At {
    key: String,
    /// Which of the reader's files, in the order in which they were added.
    file: usize,
    offset: Option<usize>,
}

impl At {
    /// What places are ordered by: the file, and in it the byte where the value starts.
    pub(crate) const fn order(&self) -> (usize, Option<usize>) {
        (self.file, self.offset)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Found<T> {
    pub(crate) value: T,
    pub(crate) at: At,
}

/// What came of looking for a key.
#[derive(Debug)]
pub(crate) enum Entry<T> {
    Absent,
    /// There and wrong; the problem is noted.
    Invalid,
    Given(Found<T>),
}

impl<T> Entry<T> {
    /// The value, or `default` if it is absent or wrong.
    pub(crate) fn or(self, default: T) -> T {
        self.or_else(|| default)
    }

    /// Like [`Self::or`], for a default that takes work.
    pub(crate) fn or_else(self, default: impl FnOnce() -> T) -> T {
        match self {
            Self::Given(found) => found.value,
            Self::Absent | Self::Invalid => default(),
        }
    }

    /// The value and its place, if it is there and right.
    pub(crate) fn given(self) -> Option<Found<T>> {
        match self {
            Self::Given(found) => Some(found),
            Self::Absent | Self::Invalid => None,
        }
    }

    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Entry<U> {
        match self {
            Self::Given(Found { value, at }) => Entry::Given(Found {
                value: change(value),
                at,
            }),
            Self::Absent => Entry::Absent,
            Self::Invalid => Entry::Invalid,
        }
    }
}

/// One table of a file.
#[derive(Clone)]
pub(crate) struct Section<'t> {
    name: &'static str,
    file: usize,
    table: Option<&'t DeTable<'t>>,
    offset: Option<usize>,
}

impl Section<'_> {
    /// The place of a key that is not there: the section's header.
    pub(crate) fn missing(&self, key: &str) -> At {
        At {
            key: self.path(key),
            file: self.file,
            offset: self.offset,
        }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }
}

/// Reads a file, perhaps with others beside it. Every key that is ever asked for is known; the rest
/// is reported in the end.
pub(crate) struct Reader<'t> {
    /// The file itself first.
    sources: Vec<&'t Source<'t>>,
    problems: Vec<(At, String)>,
    warnings: Vec<(At, String)>,
    sections: Vec<Section<'t>>,
    known: BTreeMap<&'static str, Vec<&'static str>>,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(source: &'t Source<'t>) -> Self {
        Self {
            sources: vec![source],
            problems: Vec::new(),
            warnings: Vec::new(),
            sections: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    /// The whole file as a section without a name.
    pub(crate) fn root(&mut self, table: &'t DeTable<'t>) -> Section<'t> {
        self.enter("", 0, (Some(table), None))
    }

    /// Another file, all of which is one section of this name.
    pub(crate) fn file(
        &mut self,
        source: &'t Source<'t>,
        name: &'static str,
        table: &'t DeTable<'t>,
    ) -> Section<'t> {
        self.sources.push(source);
        self.enter(name, self.sources.len() - 1, (Some(table), None))
    }

    /// The table `[name]`, empty if the file does not have it.
    pub(crate) fn section(&mut self, root: &Section<'t>, name: &'static str) -> Section<'t> {
        self.know(root.name, name);
        let is_it = |it: &&Section<'t>| it.name == name && it.file == root.file;
        if let Some(known) = self.sections.iter().find(is_it) {
            return known.clone();
        }
        let Some((at, value)) = find(root, name) else {
            return self.enter(name, root.file, (None, None));
        };
        if let DeValue::Table(table) = value {
            return self.enter(name, root.file, (Some(table), at.offset));
        }
        let found = value::found(value);
        self.problem(&at, format!("expected a section [{name}], found {found}"));
        self.enter(name, root.file, (None, at.offset))
    }

    /// The tables `[[name]]`, in the file's order.
    pub(crate) fn sections(&mut self, root: &Section<'t>, name: &'static str) -> Vec<Section<'t>> {
        self.know(root.name, name);
        let Some((at, value)) = find(root, name) else {
            return Vec::new();
        };
        let expected = format!("expected sections [[{name}]], found");
        let DeValue::Array(items) = value else {
            self.problem(&at, format!("{expected} {}", value::found(value)));
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(items.len());
        for item in items.iter() {
            let offset = Some(item.span().start);
            if let DeValue::Table(table) = item.get_ref() {
                sections.push(self.enter(name, root.file, (Some(table), offset)));
            } else {
                let at = At {
                    offset,
                    ..at.clone()
                };
                self.problem(&at, format!("{expected} {}", value::found(item.get_ref())));
            }
        }
        sections
    }

    fn enter(
        &mut self,
        name: &'static str,
        file: usize,
        (table, offset): (Option<&'t DeTable<'t>>, Option<usize>),
    ) -> Section<'t> {
        let section = Section {
            name,
            file,
            table,
            offset,
        };
        self.sections.push(section.clone());
        section
    }

    /// The value of `key`, as `parse` sees it. `parse` fails with the whole message.
    pub(crate) fn read<T>(
        &mut self,
        section: &Section<'t>,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Entry<T> {
        self.know(section.name, key);
        let Some((at, value)) = find(section, key) else {
            return Entry::Absent;
        };
        match parse(value) {
            Ok(value) => Entry::Given(Found { value, at }),
            Err(message) => {
                self.problem(&at, message);
                Entry::Invalid
            }
        }
    }

    /// The list under `key`. Wrong items and repeated ones are reported each at its own place,
    /// and left out.
    pub(crate) fn list<T: Clone + Eq + Hash>(
        &mut self,
        section: &Section<'t>,
        key: &'static str,
        parse: impl Fn(&DeValue<'t>) -> Result<T, String>,
    ) -> Entry<Vec<Found<T>>> {
        self.know(section.name, key);
        let Some((at, value)) = find(section, key) else {
            return Entry::Absent;
        };
        let DeValue::Array(array) = value else {
            self.problem(&at, value::expected("a list", value));
            return Entry::Invalid;
        };
        let mut seen = HashSet::with_capacity(array.len());
        let mut items: Vec<Found<T>> = Vec::with_capacity(array.len());
        for item in array.iter() {
            let at = At {
                key: at.key.clone(),
                file: at.file,
                offset: Some(item.span().start),
            };
            match parse(item.get_ref()) {
                Ok(value) if seen.insert(value.clone()) => items.push(Found { value, at }),
                Ok(_) => {
                    let found = value::found(item.get_ref());
                    self.problem(&at, format!("{found} is listed twice"));
                }
                Err(message) => self.problem(&at, message),
            }
        }
        Entry::Given(Found { value: items, at })
    }

    /// Notes a problem; the file will not load.
    pub(crate) fn problem(&mut self, at: &At, message: impl Into<String>) {
        self.problems.push((at.clone(), message.into()));
    }

    /// The place of a section that `root` has; none if it does not.
    pub(crate) fn place_of(&self, root: &Section<'t>, name: &str) -> Option<At> {
        find(root, name).map(|(at, _)| at)
    }

    /// Whether `root` has tables `[[name]]`, or another list that is not empty.
    pub(crate) fn has_items(&self, root: &Section<'t>, name: &str) -> bool {
        matches!(find(root, name), Some((_, DeValue::Array(items))) if !items.is_empty())
    }

    /// The place of a key, or where it would be.
    pub(crate) fn place_in(&self, section: &Section<'t>, key: &str) -> At {
        let found = find(section, key).map(|(at, _)| at);
        found.unwrap_or_else(|| section.missing(key))
    }

    /// Refuses a file that is not meant for who reads it, without a look at the rest.
    pub(crate) fn refuse(&self, at: &At, message: &str) -> ConfigError {
        ConfigError::Invalid(self.sorted(&[(at.clone(), message.to_owned())]))
    }

    /// Whether anything is wrong, when everything has been read.
    pub(crate) fn has_problems(&mut self) -> bool {
        self.report_unknown_keys();
        !self.problems.is_empty()
    }

    /// Notes something that is allowed and probably not meant.
    pub(crate) fn warning(&mut self, at: &At, message: impl Into<String>) {
        self.warnings.push((at.clone(), message.into()));
    }

    /// `line 12`, to point from one place to another; with the file, if it is another one.
    pub(crate) fn line(&self, at: &At, from: &At) -> String {
        let source = self.source(at);
        let line = at.offset.map(|offset| source.position(offset).line);
        let is_here = at.file == from.file;
        match line {
            Some(line) if is_here => format!("line {line}"),
            Some(line) => format!("{}, line {line}", source.path().display()),
            None if is_here => at.key.clone(),
            None => source.path().display().to_string(),
        }
    }

    fn source(&self, at: &At) -> &'t Source<'t> {
        // Places are made here, and each of a file that there is.
        self.sources.get(at.file).unwrap_or(&self.sources[0])
    }

    fn know(&mut self, section: &'static str, key: &'static str) {
        let keys = self.known.entry(section).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    /// Every key that was asked for, with its section.
    #[cfg(test)]
    pub(crate) fn known_keys(&self) -> std::collections::BTreeSet<String> {
        let keys = self.known.iter().filter(|(section, _)| !section.is_empty());
        keys.flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")))
            .collect()
    }

    /// Reports the keys that nobody asked for, then gives the value with the warnings, or every
    /// problem.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Vec<String>), ConfigError> {
        self.report_unknown_keys();
        match value {
            Some(value) if self.problems.is_empty() => {
                let warnings = self.sorted(&self.warnings);
                Ok((value, warnings.iter().map(ToString::to_string).collect()))
            }
            _ => Err(ConfigError::Invalid(self.sorted(&self.problems))),
        }
    }

    fn report_unknown_keys(&mut self) {
        for section in std::mem::take(&mut self.sections) {
            let known = self.known.get(section.name).cloned().unwrap_or_default();
            for key in section.table.into_iter().flat_map(|table| table.keys()) {
                let name = key.get_ref().as_ref();
                if !known.contains(&name) {
                    let at = At {
                        key: section.path(&value::bare(name)),
                        file: section.file,
                        offset: Some(key.span().start),
                    };
                    let message = self.unknown(&section, name);
                    self.problem(&at, message);
                }
            }
        }
    }

    fn unknown(&self, section: &Section<'_>, name: &str) -> String {
        let what = if section.name.is_empty() {
            "unknown section"
        } else {
            "unknown key"
        };
        let elsewhere = self
            .known
            .iter()
            .find(|(other, keys)| !other.is_empty() && keys.contains(&name));
        if let Some((section, _)) = elsewhere {
            let section = match *section {
                "peers" => "[[peers]]".to_owned(),
                section => format!("[{section}]"),
            };
            return format!("{what}; did you mean {name} in {section}?");
        }
        let known = self.known.get(section.name).into_iter().flatten();
        match value::nearest(name, known.copied()) {
            Some(nearest) => format!("{what}; did you mean {nearest}?"),
            None => what.to_owned(),
        }
    }

    fn sorted(&self, notes: &[(At, String)]) -> Vec<Problem> {
        let mut notes: Vec<_> = notes.iter().collect();
        notes.sort_by_key(|(at, _)| at.order());
        let problems = notes.into_iter().map(|(at, message)| Problem {
            file: self.source(at).path().to_owned(),
            position: at.offset.map(|offset| self.source(at).position(offset)),
            key: at.key.clone(),
            message: message.clone(),
        });
        problems.collect()
    }
}

fn find<'t>(section: &Section<'t>, key: &str) -> Option<(At, &'t DeValue<'t>)> {
    let (_, value) = section.table?.get_key_value(key)?;
    let at = At {
        key: section.path(key),
        file: section.file,
        offset: Some(value.span().start),
    };
    Some((at, value.get_ref()))
}
