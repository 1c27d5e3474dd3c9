//! The fields of a line of text.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Writes `name=value`, the value in quotes and with escapes unless it is one plain word: what a
/// peer says can then neither look like another field nor hide something.
pub(super) struct QuotedFields;

impl<'writer> FormatFields<'writer> for QuotedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Visitor {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl Visitor<'_> {
    fn write(&mut self, name: &str, value: &str) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        if name == "message" {
            return self.writer.write_str(value);
        }
        if self.writer.has_ansi_escapes() {
            // Italics, and a dim sign.
            write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?;
        } else {
            write!(self.writer, "{name}=")?;
        }
        if is_plain(value) {
            self.writer.write_str(value)
        } else {
            write!(self.writer, "{value:?}")
        }
    }
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.write(field.name(), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

fn is_plain(value: &str) -> bool {
    let is_plain =
        |c: char| c.is_alphanumeric() || (c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\'));
    !value.is_empty() && value.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use crate::log::tests::capture;

    #[test]
    fn plain_words_stand_as_they_are_and_others_in_quotes() {
        let text = capture(|| {
            let (empty, name) = ("", "анна");
            tracing::info!(peer = name, n = 5, ok = true, empty, list = ?[1, 2], "two words");
            let remote = std::net::SocketAddr::from(([192, 0, 2, 1], 8443));
            tracing::info!(%remote, peer = %name, why = %"no answer", path = "a\\b");
        });
        assert_eq!(
            text,
            "<6> INFO two words peer=анна n=5 ok=true empty=\"\" list=\"[1, 2]\"\n\
             <6> INFO remote=192.0.2.1:8443 peer=анна why=\"no answer\" path=\"a\\\\b\"\n"
        );
    }

    #[test]
    fn a_value_cannot_look_like_a_field_or_hide_anything() {
        let text = capture(|| {
            tracing::info!(reason = %"x\" peer=\"eve", a = %"b=c", "up");
            tracing::info!(reason = %"a\u{200b}b\u{feff}c\u{202e}d\u{e0041}e\nf\u{1b}[31m", "up");
        });
        assert_eq!(
            text,
            "<6> INFO up reason=\"x\\\" peer=\\\"eve\" a=\"b=c\"\n\
             <6> INFO up reason=\"a\\u{200b}b\\u{feff}c\\u{202e}d\\u{e0041}e\\nf\\u{1b}[31m\"\n"
        );
    }
}
