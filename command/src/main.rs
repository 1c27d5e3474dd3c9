//! `lostlove`: keys, peers, what daemons do, what is wrong with them, and a demonstration.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lostlove_command::peer::{self, AddPeerArgs, PeerCommand};
use lostlove_command::{demo, doctor, keys, say, status, warn_if_exposed};
use lostlove_config::{ConfigError, PEERS_FOLDER};
use lostlove_host::args::{Exit, print_usage};
use lostlove_host::setup::SetupError;

/// Keys, peers, status, faults and a demonstration for the LostLove VPN
#[derive(Parser)]
#[command(name = "lostlove", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 success, 1 failure, 2 usage, 77 no permission, 78 bad configuration.";

#[derive(Subcommand)]
enum Command {
    /// Write a fresh secret key to standard output
    Genkey,
    /// Read a secret key from standard input and write its public key to standard output
    Pubkey,
    /// Write a fresh pre-shared key to standard output
    Genpsk,
    /// Another name for `peer add`
    AddPeer(AddPeerArgs),
    /// Add, remove, list and limit a server's clients
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Look for what is wrong with this machine and its daemons, and say what helps
    Doctor(doctor::Options),
    /// Show what the daemons of this machine do
    Status(status::StatusOptions),
    /// End the session of a client, which may come back
    Disconnect(status::DisconnectOptions),
    /// Have a daemon read its configuration again
    Reload(status::ReloadOptions),
    /// Log more, or less, until the daemon ends
    LogLevel(status::LogLevelOptions),
    /// Show a server and a client at work on this machine, with or without root, and leave nothing
    /// behind
    Demo(demo::Options),
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(error) => print_usage(&error).into(),
    }
}

fn run(command: Command) -> ExitCode {
    let is_filter = matches!(command, Command::Genkey | Command::Pubkey | Command::Genpsk);
    let result = match command {
        Command::Genkey => {
            warn_if_exposed();
            keys::genkey(&mut io::stdout()).map(|()| Exit::Success)
        }
        Command::Pubkey => {
            keys::pubkey(&mut io::stdin(), &mut io::stdout()).map(|()| Exit::Success)
        }
        Command::Genpsk => {
            warn_if_exposed();
            keys::genpsk(&mut io::stdout()).map(|()| Exit::Success)
        }
        Command::AddPeer(args) => peer::run(PeerCommand::Add(args)),
        Command::Peer(command) => peer::run(command),
        Command::Doctor(options) => return doctor::run(&options),
        Command::Status(options) => return status::status(&options),
        Command::Disconnect(options) => return status::disconnect(&options),
        Command::Reload(options) => return status::reload(&options),
        Command::LogLevel(options) => return status::log_level(&options),
        Command::Demo(options) => return demo::run(&options),
    };
    match result {
        Ok(exit) => exit.into(),
        // As of any filter whose reader has gone, who wants to know no more.
        Err(SetupError::Io { source, .. })
            if is_filter && source.kind() == io::ErrorKind::BrokenPipe =>
        {
            Exit::Failure.into()
        }
        Err(error) => {
            say(&format!("lostlove: {error}{}", advice(&error)));
            Exit::from(&error).into()
        }
    }
}

fn advice(error: &SetupError) -> &'static str {
    if Exit::from(error) == Exit::NoPermission {
        return "\nRun it as root, with sudo, or as the owner of the files.";
    }
    match error {
        SetupError::Config(ConfigError::Unreadable { path, .. }) if !is_of_a_peer(path) => {
            "\nName the server's configuration with --config; a first start of lostlove-server \
             makes one."
        }
        _ => "",
    }
}

/// Whether a path is that of a peer's file.
fn is_of_a_peer(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::file_name);
    folder.is_some_and(|folder| folder == PEERS_FOLDER)
}
