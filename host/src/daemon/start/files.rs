//! What a daemon's files say, and which of them a server's start makes.

use std::io;
use std::path::{Path, PathBuf};

use lostlove_config::{
    ClientSettings, ConfigError, ServerFile, ServerSettings, SocketOptions as ConfiguredOptions,
};
use lostlove_core::config::{ClientConfig, Common, Peer, Role, ServerConfig};

use super::super::Reloader;
use super::super::reload::Stamp;
use super::failure::{Failure, before_the_log};
use crate::args::DaemonArgs;
use crate::setup::{self, FirstStart};

/// What both roles have in common.
pub(super) struct Settings {
    pub(super) endpoint: Protocol,
    pub(super) warnings: Vec<String>,
    pub(super) monitoring: lostlove_config::Monitoring,
    pub(super) tun: lostlove_config::TunOptions,
    pub(super) socket: ConfiguredOptions,
    pub(super) host: Host,
}

/// What the protocol is told.
pub(super) enum Protocol {
    Server(ServerConfig, Vec<Peer>),
    Client(ClientConfig),
}

/// What the rest of the daemon is told.
pub(super) enum Host {
    Server(lostlove_config::ServerHost),
    Client(lostlove_config::ClientHost),
}

impl From<ServerSettings> for Settings {
    fn from(settings: ServerSettings) -> Self {
        Self {
            endpoint: Protocol::Server(settings.endpoint, settings.peers),
            warnings: settings.warnings,
            monitoring: settings.host.monitoring.clone(),
            tun: settings.host.tun.clone(),
            socket: settings.host.socket.clone(),
            host: Host::Server(settings.host),
        }
    }
}

impl From<ClientSettings> for Settings {
    fn from(settings: ClientSettings) -> Self {
        Self {
            endpoint: Protocol::Client(settings.endpoint),
            warnings: settings.warnings,
            monitoring: settings.host.monitoring.clone(),
            tun: settings.host.tun.clone(),
            socket: settings.host.socket.clone(),
            host: Host::Client(settings.host),
        }
    }
}

impl Protocol {
    pub(super) const fn common(&self) -> &Common {
        match self {
            Self::Server(config, _) => &config.common,
            Self::Client(config) => &config.common,
        }
    }
}

/// What a server's start has made of its files.
pub(super) enum Made {
    Nothing,
    /// The key that a configuration of LLP 1.0 does not know of.
    Key(PathBuf),
    Everything(Box<FirstStart>),
}

/// What the files say, those made first that a server lacks, and what is to read them again. They may be
/// large, so each is read once.
pub(super) fn load(role: Role, args: &DaemonArgs) -> Result<(Settings, Reloader, Made), Failure> {
    let config = args.config.clone();
    if role == Role::Client {
        let settings = load_client(&config)?;
        let reloader = Reloader::client(config, settings.clone());
        return Ok((settings.into(), reloader, Made::Nothing));
    }
    let (mut settings, made, stamp) = load_server(role, args)?;
    // Who reads them again knows all but the peers, of which there may be very many.
    let peers = std::mem::take(&mut settings.peers);
    let reloader = Reloader::server(config, settings.clone(), stamp);
    settings.peers = peers;
    Ok((settings.into(), reloader, made))
}

/// The stamp is of the files before they were read.
fn load_server(role: Role, args: &DaemonArgs) -> Result<(ServerSettings, Made, Stamp), Failure> {
    let config = &args.config;
    let stamp = Stamp::of(config);
    let made = if makes_everything(role, args) {
        let first = setup::first_start(config).map_err(before_the_log)?;
        Made::Everything(Box::new(first))
    } else {
        match lostlove_config::open_server(config)? {
            ServerFile::Complete(settings) => return Ok((*settings, Made::Nothing, stamp)),
            ServerFile::KeyMissing(_) => {
                let key = setup::make_default_key(config).map_err(before_the_log)?;
                Made::Key(key)
            }
        }
    };
    let stamp = Stamp::of(config);
    Ok((lostlove_config::load_server(config)?, made, stamp))
}

/// Whether a start finds nothing where its configuration would be, and makes all of it. Where
/// nobody can look, there may be one.
pub(in crate::daemon) fn makes_everything(role: Role, args: &DaemonArgs) -> bool {
    role == Role::Server && !args.config_given && matches!(args.config.try_exists(), Ok(false))
}

/// A client's profile; where there is none, the error says where one comes from.
pub(in crate::daemon) fn load_client(config: &Path) -> Result<ClientSettings, Failure> {
    lostlove_config::load_client(config).map_err(|error| {
        let is_absent = matches!(
            &error,
            ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound
        );
        let mut failure = Failure::from(error);
        if is_absent {
            failure.message.push_str(NO_PROFILE);
        }
        failure
    })
}

/// What a client without a profile is told.
const NO_PROFILE: &str = "\n\
    A client needs a profile. On the server, `sudo lostlove peer add NAME --output NAME.toml` makes one \
    (its first\nstart has made client1.toml); copy it here and name it: \
    sudo lostlove-client --config NAME.toml";
