//! Which key is given twice, and where first: the `toml` crate tells only where again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use toml_parser::decoder::Encoding;
use toml_parser::parser::{EventReceiver, RecursionGuard, parse_document};
use toml_parser::{ErrorSink, Raw, Source, Span};

use crate::reader::value::bare;

/// The `toml` crate's own limit.
const MAX_DEPTH: u32 = 80;

/// A key that is given again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Duplicate {
    /// The key with its section.
    pub(crate) key: String,
    /// The byte where it was first; none if it was there without being written, as `a` is in
    /// `[a.b]`.
    pub(crate) first: Option<usize>,
}

/// What is known of the keys that start at `offsets`, each of them given again.
pub(crate) fn find(text: &str, offsets: &BTreeSet<usize>) -> BTreeMap<usize, Duplicate> {
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let mut walk = Walk {
        text,
        offsets,
        table: Vec::new(),
        keys: Vec::new(),
        values: Vec::new(),
        value: Vec::new(),
        lengths: HashMap::new(),
        first: HashMap::new(),
        found: BTreeMap::new(),
    };
    let mut guard = RecursionGuard::new(&mut walk, MAX_DEPTH);
    parse_document(&tokens, &mut guard, &mut ());
    walk.found
}

/// One step from a table or a list into it.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Step {
    Key(String),
    Item(usize),
}

type Path = Vec<Step>;

/// Follows the parser through a file.
struct Walk<'t> {
    text: &'t str,
    offsets: &'t BTreeSet<usize>,
    /// The table whose header was last.
    table: Path,
    /// The key that is being read, each part with the byte where it starts.
    keys: Vec<(String, usize)>,
    /// The inline tables and lists around this place; of a list, the next item's number.
    values: Vec<(Path, Option<usize>)>,
    /// The key whose value comes next.
    value: Path,
    /// How many `[[tables]]` there are so far.
    lengths: HashMap<Path, usize>,
    /// Where each key was first written.
    first: HashMap<Path, usize>,
    found: BTreeMap<usize, Duplicate>,
}

impl Walk<'_> {
    /// Takes the key that was read, below `base`. Its last part is written here; the others may
    /// have been written before.
    fn take(&mut self, base: Path, is_header: bool) -> Path {
        let mut path = base;
        let keys = std::mem::take(&mut self.keys);
        let last = keys.len().saturating_sub(1);
        for (index, (name, offset)) in keys.into_iter().enumerate() {
            path.push(Step::Key(name));
            if self.offsets.contains(&offset) {
                let duplicate = Duplicate {
                    key: display(&path),
                    first: self.first.get(&path).copied(),
                };
                self.found.insert(offset, duplicate);
            }
            if index == last {
                self.first.entry(path.clone()).or_insert(offset);
            } else if is_header && let Some(length) = self.lengths.get(&path) {
                path.push(Step::Item(length.saturating_sub(1)));
            }
        }
        path
    }

    /// Where the next value belongs.
    fn next_value(&self) -> Path {
        match self.values.last() {
            Some((list, Some(item))) => [list.as_slice(), &[Step::Item(*item)]].concat(),
            _ => self.value.clone(),
        }
    }
}

fn display(path: &[Step]) -> String {
    let names = path.iter().filter_map(|step| match step {
        Step::Key(name) => Some(bare(name)),
        Step::Item(_) => None,
    });
    names.collect::<Vec<_>>().join(".")
}

impl EventReceiver for Walk<'_> {
    fn std_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.keys.clear();
    }

    fn std_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.table = self.take(Path::new(), true);
    }

    fn array_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.keys.clear();
    }

    fn array_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        let mut path = self.take(Path::new(), true);
        let length = self.lengths.entry(path.clone()).or_default();
        path.push(Step::Item(*length));
        *length += 1;
        self.table = path;
    }

    fn inline_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) -> bool {
        self.values.push((self.next_value(), None));
        true
    }

    fn inline_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.values.pop();
    }

    fn array_open(&mut self, _: Span, _: &mut dyn ErrorSink) -> bool {
        self.values.push((self.next_value(), Some(0)));
        true
    }

    fn array_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.values.pop();
    }

    fn simple_key(&mut self, span: Span, kind: Option<Encoding>, _: &mut dyn ErrorSink) {
        let raw = self.text.get(span.start()..span.end()).unwrap_or_default();
        let mut name = String::new();
        Raw::new_unchecked(raw, kind, span).decode_key(&mut name, &mut ());
        self.keys.push((name, span.start()));
    }

    fn key_val_sep(&mut self, _: Span, _: &mut dyn ErrorSink) {
        let base = match self.values.last() {
            Some((table, _)) => table.clone(),
            None => self.table.clone(),
        };
        self.value = self.take(base, false);
    }

    fn value_sep(&mut self, _: Span, _: &mut dyn ErrorSink) {
        if let Some((_, Some(item))) = self.values.last_mut() {
            *item += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of the last `key` of the text.
    #[track_caller]
    fn again(text: &str, key: &str) -> (String, Option<usize>) {
        let offset = text.rfind(key).unwrap();
        let mut found = find(text, &BTreeSet::from([offset]));
        let duplicate = found.remove(&offset).unwrap();
        let line = |offset| text[..offset].matches('\n').count() + 1;
        (duplicate.key, duplicate.first.map(line))
    }

    #[test]
    fn a_key_is_found_where_it_was_first_whatever_its_form() {
        for (text, key, path, line) in [
            ("port = 1\nport = 2\n", "port", "port", 1),
            ("[a]\nx = 1\n[b]\nx = 1\n\nx = 2\n", "x = 2", "b.x", 4),
            ("[a]\nx = 1\n[b]\n[a]\n", "a]", "a", 1),
            ("[a]\n'x' = 1\n\"x\" = 2\n", "\"x\"", "a.x", 2),
            ("a.b = 1\na.b = 2\n", "b = 2", "a.b", 1),
            ("t = { x = 1, x = 2 }\n", "x = 2", "t.x", 1),
            ("[[p]]\nx = 1\n[[p]]\nx = 1\nx = 2\n", "x = 2", "p.x", 4),
            ("[[p]]\n[[p]]\n[p.q]\n[p.q]\n", "q]", "p.q", 3),
            ("p = [{ x = 1 }, { x = 1,\nx = 2 }]\n", "x = 2", "p.x", 1),
            ("[p]\n[[p]]\n", "p]]", "p", 1),
            ("\"a b\" = 1\n\"a b\" = 2\n", "\"a b\" = 2", "\"a b\"", 1),
        ] {
            let expected = (path.to_owned(), Some(line));
            assert_eq!(again(text, key), expected, "{text}");
        }
    }

    #[test]
    fn what_was_first_elsewhere_is_not_pointed_to() {
        for (text, key) in [
            ("[a]\nx = 1\n[b]\nx = 2\n", "x = 2"),
            ("[[p]]\nx = 1\n[[p]]\nx = 2\n", "x = 2"),
            ("[[p]]\n[p.q]\n[[p]]\n[p.q]\n", "q]"),
            ("p = [{ x = 1 }, { x = 2 }]\n", "x = 2"),
            ("t = { x = 1 }\nx = 2\n", "x = 2"),
        ] {
            assert_eq!(again(text, key).1, None, "{text}");
        }
    }

    #[test]
    fn broken_and_deep_text_is_walked_to_its_end() {
        let deep = format!("a = {}\nb = 1\nb = 2\n", "[".repeat(100_000));
        let open = format!("a = {}\n", "{ a = ".repeat(100_000));
        for text in ["]", "[", "a = }", "= 1", "[[a]", "a.", "'", &deep, &open] {
            let offsets: BTreeSet<usize> = (0..text.len().min(1000)).collect();
            let _ = find(text, &offsets);
        }
    }
}
