//! `lostlove`: keys, profiles and a demonstration.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use lostlove_command::{demo, keys};
use lostlove_config::{ConfigError, Routes, ServerAddress};
use lostlove_core::config::Role;
use lostlove_host::args::{self, Exit, print_usage};
use lostlove_host::setup::{self, AddPeer, AddedPeer, Remembered, SetupError};

/// Keys, profiles and a demonstration for the LostLove VPN
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
    /// Add a client to a server's configuration and write the client's profile
    AddPeer(AddPeerArgs),
    /// Show a server and a client at work on this machine, with or without root, and leave nothing
    /// behind
    Demo(demo::Options),
}

#[derive(Args)]
struct AddPeerArgs {
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
}

fn default_config() -> &'static OsStr {
    args::default_config(Role::Server).as_os_str()
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
            keys::genkey(&mut io::stdout())
        }
        Command::Pubkey => keys::pubkey(&mut io::stdin(), &mut io::stdout()),
        Command::Genpsk => {
            warn_if_exposed();
            keys::genpsk(&mut io::stdout())
        }
        Command::AddPeer(args) => add_peer(args),
        Command::Demo(options) => return demo::run(&options),
    };
    match result {
        Ok(()) => Exit::Success.into(),
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

fn add_peer(args: AddPeerArgs) -> Result<(), SetupError> {
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
    };
    let added = setup::add_peer(&request, &mut io::stdout())?;
    say(&format!(
        "Added {} ({}) to {}; it will connect to {}.",
        request.name,
        added.assigned.address_v4,
        request.config.display(),
        added.server,
    ));
    if let Some(remark) = remark(&added) {
        say(&remark);
    }
    say("A server that runs must be restarted before it lets the new client in.");
    Ok(())
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
            "To have the next one connect there, too, add to the configuration:\n\
             [server]\npublic_address = \"{server}\""
        )),
    }
}

fn advice(error: &SetupError) -> &'static str {
    if Exit::from(error) == Exit::NoPermission {
        return "\nRun it as root, with sudo, or as the owner of the files.";
    }
    match error {
        SetupError::Config(ConfigError::Unreadable { .. }) => {
            "\nName the server's configuration with --config; a first start of lostlove-server \
             makes one."
        }
        _ => "",
    }
}

fn warn_if_exposed() {
    if keys::is_exposed(io::stdout()) {
        say("lostlove: warning: others can read the file that this key goes to; use umask 077");
    }
}

fn say(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}
