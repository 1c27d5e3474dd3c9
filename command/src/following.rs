//! What becomes of a server that runs when its peers' files have changed.

use std::fmt::Write as _;
use std::path::Path;

use lostlove_host::args::Exit;
use lostlove_host::control::files::Files;
use lostlove_host::control::protocol::{Body, Reloaded, Request};

use crate::control::{ControlError, Found, RELOAD_PATIENCE, Said, ask_until, find_every};
use crate::plain;

/// What is to be said, and how the command ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) exit: Exit,
}

impl Told {
    /// The operator does not want the server told.
    pub(crate) fn nobody() -> Self {
        Self {
            text: "A server that runs follows after `lostlove reload`, or when it starts."
                .to_owned(),
            exit: Exit::Success,
        }
    }
}

/// What one server has said.
type Answer = (String, Result<Reloaded, ControlError>);

/// Has the server that reads this configuration follow its peers.
pub(crate) fn tell_server(config: &Path) -> Told {
    match ask(Files::of(config)) {
        Ok(answers) => judge(&answers, config),
        Err(error) => unsure(&[&error]),
    }
}

/// Asks all daemons, of which each knows what it reads. Those who read something else are left out.
fn ask(files: Files) -> Result<Vec<Answer>, ControlError> {
    let Found {
        mut daemons,
        denied,
        ..
    } = find_every()?;
    let request = Request::reload_peers(files);
    let said = ask_until(&mut daemons, &request, RELOAD_PATIENCE, has_read);
    let answers = daemons.iter().zip(said).filter_map(|(daemon, said)| {
        let said = match said {
            Err(ControlError::OtherConfiguration(_)) => return None,
            Ok((_, Body::Reloaded(reloaded))) => Ok(reloaded),
            Ok(_) => Err(ControlError::no_answer()),
            Err(error) => Err(error),
        };
        Some((daemon.name.clone(), said))
    });
    let denied = denied.into_iter().map(|it| (it.name, Err(it.error)));
    Ok(answers.chain(denied).collect())
}

/// Whether this one is the one: it has read the files, or tried to.
const fn has_read(said: &Said) -> bool {
    matches!(
        said,
        Ok((_, Body::Reloaded(_))) | Err(ControlError::BadConfiguration(_))
    )
}

/// From what all of them have said.
fn judge(answers: &[Answer], config: &Path) -> Told {
    // Who has read the file, or tried to, is the one.
    let mut told: Option<Told> = None;
    let mut errors = Vec::new();
    for (name, said) in answers {
        let one = match said {
            Ok(reloaded) => followed(name, reloaded),
            Err(error @ ControlError::BadConfiguration(_)) => refused(name, error),
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        told = Some(match told {
            None => one,
            Some(told) => told.and(one),
        });
    }
    match told {
        Some(told) => told.but_for(&errors),
        None if errors.is_empty() => Told {
            text: format!(
                "No running server that reads {} was found: it counts when one starts.\n\
                 One without a control socket follows after SIGHUP.",
                config.display()
            ),
            exit: Exit::Success,
        },
        None => unsure(&errors),
    }
}

fn followed(name: &str, reloaded: &Reloaded) -> Told {
    let Reloaded {
        applied,
        needs_restart,
        waiting,
    } = reloaded;
    let is_left_out = needs_restart.iter().any(|key| key == "peers");
    let mut text = if is_left_out {
        format!("{name}: NOT in force: the tunnel's network has changed, too")
    } else if applied.is_empty() {
        format!("{name}: in force")
    } else {
        format!(
            "{name}: in force from now on: {}",
            plain::line(&applied.join("; "))
        )
    };
    for (what, keys) in [
        ("after a restart", needs_restart),
        ("not touched, for `lostlove reload`", waiting),
    ] {
        if !keys.is_empty() {
            let _ = write!(text, "\n  {what}: {}", plain::line(&keys.join("; ")));
        }
    }
    let exit = if is_left_out {
        Exit::Failure
    } else {
        Exit::Success
    };
    Told { text, exit }
}

fn refused(name: &str, error: &ControlError) -> Told {
    Told {
        text: format!(
            "{name}: NOT in force: {error}\n\
             When that is mended, run `sudo lostlove reload`."
        ),
        exit: Exit::from(error),
    }
}

/// Nobody has said that it reads the file, and some have not said anything.
fn unsure(errors: &[&ControlError]) -> Told {
    let mut text = "The file is written, but a server that runs may not have followed:".to_owned();
    for error in errors {
        let _ = write!(text, "\n  {error}");
    }
    text.push_str("\nWhen that is mended, run `sudo lostlove reload`.");
    let exit = errors
        .first()
        .map_or(Exit::Failure, |error| Exit::from(*error));
    Told { text, exit }
}

impl Told {
    /// What is not known of others, who may read the files as well.
    fn but_for(mut self, errors: &[&ControlError]) -> Self {
        if !errors.is_empty() {
            self.text
                .push_str("\nIf others read these files as well, they may not have followed:");
        }
        for error in errors {
            let _ = write!(self.text, "\n  {error}");
        }
        self
    }

    /// Both, where two servers read one file.
    fn and(self, other: Self) -> Self {
        let exit = match self.exit {
            Exit::Success => other.exit,
            exit => exit,
        };
        let text = format!("{}\n{}", self.text, other.text);
        Self { text, exit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reloaded(applied: &[&str], needs_restart: &[&str], waiting: &[&str]) -> Answer {
        let list = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        let reloaded = Reloaded {
            applied: list(applied),
            needs_restart: list(needs_restart),
            waiting: list(waiting),
        };
        ("lostlove0".to_owned(), Ok(reloaded))
    }

    fn judged(answers: &[Answer]) -> (String, Exit) {
        let told = judge(answers, Path::new("/etc/lostlove/server.toml"));
        (told.text, told.exit)
    }

    fn silent() -> Answer {
        let error = ControlError::Silent {
            path: "/run/lostlove/lostlove1.1.sock".into(),
            holder: None,
        };
        ("lostlove1".to_owned(), Err(error))
    }

    #[test]
    fn what_is_in_force_is_said_and_what_was_not_touched() {
        let (text, exit) = judged(&[reloaded(&["peers added: a"], &[], &["network.dns"])]);
        let expected = "lostlove0: in force from now on: peers added: a\n  \
            not touched, for `lostlove reload`: network.dns";
        assert_eq!((text.as_str(), exit), (expected, Exit::Success));
        // Another command's reload has brought it.
        let (text, exit) = judged(&[reloaded(&[], &["server.port"], &[])]);
        let expected = "lostlove0: in force\n  after a restart: server.port";
        assert_eq!((text.as_str(), exit), (expected, Exit::Success));
        // Some other daemon is no matter, unless it reads the same.
        let (text, exit) = judged(&[silent(), reloaded(&[], &[], &[])]);
        assert!(
            text.starts_with("lostlove0: in force\nIf others read"),
            "{text}"
        );
        assert!(text.contains("lostlove1.1.sock does not answer"), "{text}");
        assert_eq!(exit, Exit::Success);
    }

    #[test]
    fn what_is_not_in_force_is_a_failure() {
        let (text, exit) = judged(&[reloaded(&[], &["peers"], &[])]);
        assert!(text.contains("NOT in force"), "{text}");
        assert_eq!(exit, Exit::Failure);
        let bad = ControlError::BadConfiguration("server.toml:3:1: what".to_owned());
        let two = [reloaded(&[], &[], &[]), ("lostlove1".to_owned(), Err(bad))];
        let (text, exit) = judged(&two);
        assert!(
            text.contains("lostlove0: in force\nlostlove1: NOT in force"),
            "{text}"
        );
        assert!(text.contains("server.toml:3:1: what"), "{text}");
        assert_eq!(exit, Exit::BadConfiguration);
    }

    #[test]
    fn where_nobody_says_that_he_reads_the_file_those_who_say_nothing_are_named() {
        let (text, exit) = judged(&[]);
        assert!(
            text.starts_with("No running server that reads /etc/lostlove/server.toml was found"),
            "{text}"
        );
        assert_eq!(exit, Exit::Success);
        let denied = ControlError::Denied {
            path: "/run/lostlove/lostlove0.1.sock".into(),
            group: "lostlove".to_owned(),
        };
        let (text, exit) = judged(&[("lostlove0".to_owned(), Err(denied)), silent()]);
        assert!(text.contains("for the group lostlove; use sudo"), "{text}");
        assert!(text.contains("lostlove1.1.sock does not answer"), "{text}");
        assert_eq!(exit, Exit::NoPermission);
    }
}
