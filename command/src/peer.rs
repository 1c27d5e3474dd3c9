//! `lostlove peer`: a server's clients, each in a file of its own.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use lostlove_config::write::PeerValue;
use lostlove_config::{Expiry, Routes, ServerAddress, peer_path};
use lostlove_core::config::Role;
use lostlove_host::args::{self, Exit};
use lostlove_host::setup::{self, AddPeer, AddedPeer, ListedPeer, Remembered, SetupError};

use crate::following::{Told, tell_server};
use crate::{say, warn_if_exposed};

/// What to do with a server's clients. The server that runs follows at once.
#[derive(Subcommand)]
pub enum PeerCommand {
    /// Add a client to a server, which lets it in at once, and write the client's profile
    Add(AddPeerArgs),
    /// Remove a client: its session ends, and its key is refused
    Remove(RemovePeerArgs),
    /// List all clients
    List(ServerConfig),
    /// Limit a client, or let it connect for longer
    Set(SetPeerArgs),
}

/// Whose configuration it is.
#[derive(Args)]
pub struct ServerConfig {
    /// The server's configuration
    #[arg(long, short, value_name = "FILE", default_value = default_config())]
    config: PathBuf,
}

/// Whether a server that runs is told.
#[derive(Args)]
pub struct Following {
    /// Only write the file: a server that runs follows after `lostlove reload`
    #[arg(long)]
    no_reload: bool,
}

impl Following {
    /// Has the server follow, and says what has come of it.
    fn tell(&self, config: &Path) -> Exit {
        let told = if self.no_reload {
            Told::nobody()
        } else {
            tell_server(config)
        };
        say(&told.text);
        told.exit
    }
}

/// A client to remove.
#[derive(Args)]
pub struct RemovePeerArgs {
    /// Name of the client
    name: String,
    #[command(flatten)]
    server: ServerConfig,
    #[command(flatten)]
    following: Following,
}

/// A client to add.
#[derive(Args)]
pub struct AddPeerArgs {
    /// Name of the client, for logs and metrics
    name: String,
    /// The server's configuration
    #[arg(long, short, value_name = "FILE", default_value = default_config())]
    config: PathBuf,
    /// Where clients reach the server; remembered as server.public_address. By default what that says, or
    /// else the address of this host's default route
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<ServerAddress>,
    /// New file for the profile; by default it goes to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The client sends everything through the tunnel; this is the default
    #[arg(long, conflicts_with = "split")]
    full: bool,
    /// The client sends only what is for the server's networks through the tunnel
    #[arg(long)]
    split: bool,
    /// Bytes per second each way; by default limits.rate_limit_per_user
    #[arg(long, value_name = "BYTES")]
    rate_limit: Option<u64>,
    /// Last day (UTC) on which it may connect, or a moment such as 2027-01-31T18:00:00Z
    #[arg(long, value_name = "DATE")]
    expires: Option<Expiry>,
    #[command(flatten)]
    following: Following,
}

/// What to set for a client.
#[derive(Args)]
#[group(required = true, multiple = true, args = ["rate_limit", "expires"])]
pub struct SetPeerArgs {
    /// Name of the client
    name: String,
    #[command(flatten)]
    server: ServerConfig,
    /// Bytes per second each way, or `none` for limits.rate_limit_per_user
    #[arg(long, value_name = "BYTES")]
    rate_limit: Option<OrNone<u64>>,
    /// Last day (UTC) on which it may connect, or a moment such as 2027-01-31T18:00:00Z, or `none`
    #[arg(long, value_name = "DATE")]
    expires: Option<OrNone<Expiry>>,
    #[command(flatten)]
    following: Following,
}

/// A value, or `none`.
#[derive(Clone, Copy)]
struct OrNone<T>(Option<T>);

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text {
            "none" => Ok(Self(None)),
            text => text.parse().map(|value| Self(Some(value))),
        }
    }
}

fn default_config() -> &'static OsStr {
    args::default_config(Role::Server).as_os_str()
}

/// Does it, has the server that runs follow, and tells the operator what has come of that. How the
/// command ends where the files are as he wants them.
///
/// # Errors
///
/// When a file is wrong or cannot be written, a name is taken or unknown, or a peer is written by hand.
pub fn run(command: PeerCommand) -> Result<Exit, SetupError> {
    match command {
        PeerCommand::Add(args) => add(args),
        PeerCommand::Remove(args) => {
            let config = &args.server.config;
            setup::remove_peer(config, &args.name)?;
            say(&format!("Removed {}.", args.name));
            Ok(args.following.tell(config))
        }
        PeerCommand::List(server) => list(&server.config).map(|()| Exit::Success),
        PeerCommand::Set(args) => set(&args),
    }
}

fn add(args: AddPeerArgs) -> Result<Exit, SetupError> {
    if args.output.is_none() {
        warn_if_exposed();
    }
    let routes = if args.split {
        Routes::Server
    } else {
        Routes::Full
    };
    let request = AddPeer {
        name: args.name,
        config: args.config,
        server: args.server,
        output: args.output,
        routes,
        rate_limit: args.rate_limit,
        expires: args.expires,
    };
    let added = setup::add_peer(&request, &mut io::stdout())?;
    say(&format!(
        "Added {} ({}) to {}; it will connect to {}.",
        request.name,
        added.assigned.address_v4,
        peer_path(&request.config, &request.name).display(),
        added.server,
    ));
    if let Some(remark) = remark(&added) {
        say(&remark);
    }
    warn_if_over(request.expires);
    Ok(args.following.tell(&request.config))
}

fn set(args: &SetPeerArgs) -> Result<Exit, SetupError> {
    let config = &args.server.config;
    let rate_limit = args.rate_limit.map(|rate| PeerValue::RateLimit(rate.0));
    let expires = args.expires.map(|expires| PeerValue::Expires(expires.0));
    let values: Vec<_> = rate_limit.into_iter().chain(expires).collect();
    setup::set_peer(config, &args.name, &values)?;
    say(&format!("Changed {}.", args.name));
    warn_if_over(args.expires.and_then(|expires| expires.0));
    Ok(args.following.tell(config))
}

/// A mistyped year ends a session.
fn warn_if_over(expires: Option<Expiry>) {
    if expires.is_some_and(|it| it.unix_time() <= since_1970()) {
        say("That day is over: the client cannot connect.");
    }
}

fn since_1970() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

fn list(config: &Path) -> Result<(), SetupError> {
    let peers = setup::list_peers(config)?;
    let text = table(&peers, since_1970());
    let mut output = io::stdout();
    let written = output.write_all(text.as_bytes());
    match written.and_then(|()| output.flush()) {
        // Whoever has closed it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(SetupError::io("write the list")),
    }
}

/// A line for each peer, in columns.
fn table(peers: &[ListedPeer], now: Duration) -> String {
    let heading = ["NAME", "ADDRESS", "LIMIT", "EXPIRES", "PUBLIC KEY", "FILE"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(peers.iter().map(|peer| row(peer, now)));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    });
    lines.collect()
}

fn row(peer: &ListedPeer, now: Duration) -> [String; 6] {
    let addresses: Vec<_> = peer.addresses.iter().map(ToString::to_string).collect();
    let none = || "-".to_owned();
    let expires = peer.expires.map(|at| {
        let (days, seconds) = (at.as_secs() / 86_400, at.as_secs() % 86_400);
        let date = date_of(days);
        let time = format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        );
        let mark = if at <= now { " (expired)" } else { "" };
        format!("{date}T{time}Z{mark}")
    });
    [
        peer.name.clone(),
        if addresses.is_empty() {
            none()
        } else {
            addresses.join(",")
        },
        peer.rate_limit.map_or_else(none, |rate| rate.to_string()),
        expires.unwrap_or_else(none),
        peer.public_key.to_string(),
        peer.file.display().to_string(),
    ]
}

/// The date so many days after 1 January 1970, of the Gregorian calendar. Years begin in March here.
fn date_of(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let is_next_year = month >= 10;
    let month = if is_next_year { month - 9 } else { month + 3 };
    let year = era * 400 + year + u64::from(is_next_year);
    format!("{year:04}-{month:02}-{day:02}")
}

/// What is to be said of where the server is.
fn remark(added: &AddedPeer) -> Option<String> {
    let server = &added.server;
    match &added.remembered {
        Remembered::Already => None,
        Remembered::Now => Some(format!(
            "The next ones will, too: server.public_address is {server} from now on."
        )),
        Remembered::Otherwise(other) => Some(format!(
            "The next one will connect to {other}, unless you change server.public_address."
        )),
        Remembered::Guessed => Some(
            "If this host is behind NAT, set `server` in the profile to its public address; the next \
             time, give it with --server."
                .to_owned(),
        ),
        Remembered::NoPlace => Some(format!(
            "To have the next one connect there, too, set server.public_address = \"{server}\" in the \
             configuration."
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_dates() {
        for text in [
            "1970-01-01",
            "2000-02-29",
            "2027-01-31",
            "2100-02-28",
            "2400-12-31",
        ] {
            let expiry: Expiry = text.parse().unwrap();
            let days = expiry.unix_time().as_secs() / 86_400;
            assert_eq!(date_of(days - 1), text);
        }
    }

    #[test]
    fn a_list_has_a_line_for_each_peer_and_says_who_has_expired() {
        let peer = |name: &str, expires| ListedPeer {
            name: name.to_owned(),
            public_key: lostlove_core::crypto::SecretKey::from_bytes([1; 32]).public_key(),
            addresses: vec![[10, 8, 0, 2].into()],
            rate_limit: Some(1000),
            expires,
            file: "peers.d/x.toml".into(),
        };
        let day = Duration::from_hours(24);
        let peers = [
            peer("a", Some(day)),
            peer("longer", Some(3 * day)),
            peer("b", None),
        ];
        let text = table(&peers, 2 * day);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[1].starts_with("a       10.8.0.2  1000   1970-01-02T00:00:00Z (expired)"),
            "{text}"
        );
        assert!(lines[2].contains("1970-01-04T00:00:00Z  "), "{text}");
        assert!(lines[3].contains("1000   -"), "{text}");
    }
}
