//! The configuration, read again while the daemon runs: what has changed is applied, or is said to
//! need a restart.

mod complaints;
mod demands;
mod differences;
mod stamp;

use std::mem;
use std::path::{self, Path, PathBuf};
use std::time::Instant;

use lostlove_config::{ClientSettings, ConfigError, LogLevel, ServerSettings};
use lostlove_core::config::{Peer, ServerConfig};
use lostlove_core::peers::{Replaced, SharedPeers};
use lostlove_core::time;
use lostlove_system::limits::raise_descriptor_limit;
use tracing::{debug, info, warn};

use self::complaints::Complaints;
use self::demands::Demands;
pub(super) use self::demands::Scope;
use self::differences::Differences;
pub(super) use self::stamp::Stamp;
use super::Daemon;
use crate::control::Asker;
use crate::control::files::Files;
use crate::log;
use crate::mailbox::Order;

/// Names of peers that one line of the log has at most.
const MAX_NAMES: usize = 20;

/// Problems of the files that a status names at most.
const MAX_PROBLEMS: usize = 8;

/// What has come of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadOutcome {
    /// What has changed and is in force: keys of the configuration, and peers.
    pub applied: Vec<String>,
    /// What has changed, or changed earlier, and is in force after a restart.
    pub needs_restart: Vec<String>,
    /// What has changed and waits for a reload of all, as this one was for the peers alone.
    pub waiting: Vec<String>,
    /// What is wrong with the files. Then nothing has changed.
    pub error: Option<String>,
}

/// Knows where the configuration is, and what of it is in force.
#[derive(Debug)]
pub struct Reloader {
    config: PathBuf,
    in_force: InForce,
    demands: Demands,
    complaints: Complaints,
    /// Of a server's files, as of before they were read at the start.
    stamp: Option<Stamp>,
}

/// Without peers, which are where they belong.
#[derive(Debug)]
enum InForce {
    Server(Box<ServerSettings>),
    Client(Box<ClientSettings>),
}

impl Reloader {
    /// For a server that has started with these settings, of files that were as the stamp says before
    /// they were read.
    pub(super) fn server(config: PathBuf, mut settings: ServerSettings, stamp: Stamp) -> Self {
        settings.peers = Vec::new();
        Self::new(config, InForce::Server(Box::new(settings)), Some(stamp))
    }

    /// For a client that has started with these settings.
    pub fn client(config: PathBuf, settings: ClientSettings) -> Self {
        Self::new(config, InForce::Client(Box::new(settings)), None)
    }

    fn new(config: PathBuf, in_force: InForce, stamp: Option<Stamp>) -> Self {
        Self {
            config: path::absolute(&config).unwrap_or(config),
            in_force,
            demands: Demands::default(),
            complaints: Complaints::default(),
            stamp,
        }
    }

    /// The file that is read, an absolute path.
    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    /// Whether these are what is read.
    pub(super) fn reads(&self, files: &Files) -> bool {
        files.are(&Files::of(&self.config))
    }

    /// From now on whoever changes the files can say so. What was changed since they were read at the
    /// start, when nobody could, is to be read, too: all of it if somebody has asked for that.
    pub(super) fn begin(&mut self, is_all_wanted: bool, now: Instant) {
        if is_all_wanted {
            self.demand(now);
        } else if self
            .stamp
            .is_some_and(|stamp| stamp != Stamp::of(&self.config))
        {
            self.demands.make(Scope::Peers, None, now);
        }
    }

    /// When it is to be read.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.demands.poll_timeout()
    }

    /// Somebody wants it read.
    pub(super) fn demand(&mut self, now: Instant) {
        self.demands.make(Scope::All, None, now);
    }

    /// A client of the control socket wants it read, and waits for what comes of it.
    pub(super) fn demand_for(&mut self, asker: Asker, scope: Scope, now: Instant) {
        self.demands.make(scope, Some(asker), now);
    }
}

impl Daemon {
    /// Reads the configuration again soon: at once, but once a second at most.
    pub(super) fn demand_reload(&mut self, now: Instant) {
        match &mut self.reloader {
            Some(reloader) => reloader.demand(now),
            None => info!("there is no configuration to read again"),
        }
    }

    pub(super) fn reload_if_due(&mut self, now: Instant) {
        let is_ending = self.readiness.is_ending();
        let reloader = self.reloader.as_mut();
        let due = reloader.and_then(|it| it.demands.take_due(now, is_ending));
        let Some((scope, askers)) = due else {
            return;
        };
        let outcome = (!is_ending).then(|| self.reload(scope));
        self.answer_reload(&askers, outcome);
    }

    /// Reads the configuration again, applies what can be applied, and says so in the log. A file that
    /// cannot be used changes nothing.
    fn reload(&mut self, scope: Scope) -> ReloadOutcome {
        let Some(mut reloader) = self.reloader.take() else {
            return ReloadOutcome::default();
        };
        let began = Instant::now();
        let result = self.read_again(&mut reloader, scope);
        let now = Instant::now();
        reloader.demands.note_read(scope, began, now);
        let config = reloader.config.display().to_string();
        let is_followed = result.as_ref().is_ok_and(|it| it.waiting.is_empty());
        self.metrics.note_reload(result.is_ok(), is_followed);
        self.control.reload_error = result.as_ref().err().map(first_problems);
        let outcome = match result {
            Ok(outcome) => {
                reloader.complaints.handle_mended();
                tell(&config, scope, &outcome);
                outcome
            }
            Err(problem) => {
                let problem = problem.to_string();
                reloader.complaints.complain(&config, &problem, scope, now);
                ReloadOutcome {
                    error: Some(problem),
                    ..ReloadOutcome::default()
                }
            }
        };
        self.reloader = Some(reloader);
        outcome
    }

    fn read_again(
        &mut self,
        reloader: &mut Reloader,
        scope: Scope,
    ) -> Result<ReloadOutcome, ConfigError> {
        match &mut reloader.in_force {
            InForce::Server(known) => {
                let settings = lostlove_config::load_server(&reloader.config)?;
                let warnings = settings.warnings.clone();
                let outcome = match scope {
                    Scope::All => self.follow_server(known, settings),
                    Scope::Peers => self.follow_peers_alone(known, settings),
                };
                if is_news(scope, &outcome) {
                    warn_of(&warnings);
                }
                Ok(outcome)
            }
            InForce::Client(known) => {
                let settings = lostlove_config::load_client(&reloader.config)?;
                warn_of(&settings.warnings);
                Ok(follow_client(known, &settings))
            }
        }
    }

    fn follow_server(
        &mut self,
        known: &mut ServerSettings,
        mut new: ServerSettings,
    ) -> ReloadOutcome {
        let mut found = Differences::of_servers(known, &new);
        let peers = take_peers(known, &mut new, &mut found);
        if let Some(shared) = &self.peers {
            let said = follow_peers(shared, &new.endpoint, peers, self.clock.now());
            found.applied.extend(said);
        }
        let level = (
            known.host.monitoring.log_level,
            new.host.monitoring.log_level,
        );
        found.note_level(level, log::set_configured_level);
        let limits = &new.endpoint.common.limits;
        raise_descriptor_limit(limits.max_connections.saturating_add(limits.max_handshakes));
        self.order(Order::Reconfigure(Box::new(new.endpoint.clone())));
        self.look_at_the_day();
        known.host.monitoring.log_level = new.host.monitoring.log_level;
        known.host.public_address = new.host.public_address;
        known.endpoint = differences::in_force(&known.endpoint, new.endpoint);
        found.into()
    }

    /// Has the peers be those of new settings, and leaves all else as it is.
    fn follow_peers_alone(
        &mut self,
        known: &ServerSettings,
        mut new: ServerSettings,
    ) -> ReloadOutcome {
        let mut found = Differences::of_servers(known, &new);
        let peers = take_peers(known, &mut new, &mut found);
        let waiting = found.take_waiting(known, &new);
        if let (Some(shared), Some(peers)) = (&self.peers, peers) {
            let now = self.clock.now();
            let replaced = shared.with(|shared| shared.replace(peers, now));
            found.applied = words_for(&replaced);
            self.order(Order::PeersChanged);
            self.look_at_the_day();
        }
        ReloadOutcome {
            waiting,
            ..found.into()
        }
    }
}

/// The peers of new settings, unless they are judged by a network that is not there yet.
fn take_peers(
    known: &ServerSettings,
    new: &mut ServerSettings,
    found: &mut Differences,
) -> Option<Vec<Peer>> {
    let tunnel = |settings: &ServerSettings| {
        let server = &settings.endpoint.server;
        (server.address_v4, server.address_v6)
    };
    if tunnel(known) == tunnel(new) {
        return Some(mem::take(&mut new.peers));
    }
    found.needs_restart.push("peers".to_owned());
    None
}

/// Has the peers follow other limits, and be `new` ones if there are any. Returns what there is to say of
/// those who have come, changed or gone.
fn follow_peers(
    peers: &SharedPeers,
    config: &ServerConfig,
    new: Option<Vec<Peer>>,
    now: time::Instant,
) -> Vec<String> {
    let max_connected = config.common.limits.max_connections;
    let replaced = peers.with(|peers| {
        peers.set_limits(config.server.rate_limit, max_connected);
        new.map(|new| peers.replace(new, now))
    });
    replaced.as_ref().map(words_for).unwrap_or_default()
}

/// What is wrong with the files, as far as a status has room for it.
fn first_problems(error: &ConfigError) -> String {
    let all = error.to_string();
    let first: Vec<_> = all.lines().take(MAX_PROBLEMS).collect();
    match all.lines().count() - first.len() {
        0 => all,
        rest => format!("{}\nand {rest} more", first.join("\n")),
    }
}

fn words_for(replaced: &Replaced) -> Vec<String> {
    let Replaced {
        added,
        altered,
        removed,
    } = replaced;
    let kinds = [("added", added), ("altered", altered), ("removed", removed)];
    let kinds = kinds.into_iter().filter(|(_, names)| !names.is_empty());
    kinds
        .map(|(what, names)| match names.len().checked_sub(MAX_NAMES) {
            Some(rest @ 1..) => {
                let names = names[..MAX_NAMES].join(", ");
                format!("peers {what}: {names} and {rest} more")
            }
            _ => format!("peers {what}: {}", names.join(", ")),
        })
        .collect()
}

/// Of a client's profile, the level of its log is followed.
fn follow_client(known: &mut ClientSettings, new: &ClientSettings) -> ReloadOutcome {
    let mut found = Differences::of_clients(known, new);
    let level: (LogLevel, LogLevel) = (
        known.host.monitoring.log_level,
        new.host.monitoring.log_level,
    );
    found.note_level(level, log::set_configured_level);
    known.host.monitoring.log_level = new.host.monitoring.log_level;
    found.into()
}

impl From<Differences> for ReloadOutcome {
    fn from(found: Differences) -> Self {
        Self {
            applied: found.applied,
            needs_restart: found.needs_restart,
            ..Self::default()
        }
    }
}

fn warn_of(warnings: &[String]) {
    for warning in warnings {
        warn!("{warning}");
    }
}

/// Whether the log is to tell of it. Whoever wants the peers followed is told himself, and may ask often.
fn is_news(scope: Scope, outcome: &ReloadOutcome) -> bool {
    scope == Scope::All || !outcome.applied.is_empty()
}

fn tell(config: &str, scope: Scope, outcome: &ReloadOutcome) {
    let list = |names: &[String]| (!names.is_empty()).then(|| names.join("; "));
    let applied = list(&outcome.applied);
    let needs_restart = list(&outcome.needs_restart);
    let waiting = list(&outcome.waiting);
    if !is_news(scope, outcome) {
        debug!(
            config,
            needs_restart, waiting, "the peers were read again, and none has changed"
        );
    } else if needs_restart.is_some() {
        warn!(
            config,
            applied,
            waiting,
            needs_restart,
            "the configuration was read again; some of it needs a restart"
        );
    } else if waiting.is_some() {
        info!(config, applied, waiting, "the peers were read again");
    } else if applied.is_some() {
        info!(config, applied, "the configuration was read again");
    } else {
        info!(
            config,
            "the configuration was read again, and nothing has changed"
        );
    }
}

#[cfg(test)]
mod tests {
    use lostlove_core::peers::Peers;

    use super::*;

    fn settings() -> (tempfile::TempDir, PathBuf, ServerSettings) {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        crate::setup::first_start(&config).unwrap();
        let settings = lostlove_config::load_server(&config).unwrap();
        (folder, config, settings)
    }

    #[test]
    fn limits_are_followed_also_where_the_peers_wait_for_another_tunnel() {
        let (_folder, _config, mut settings) = settings();
        let now = time::Instant::ZERO;
        let peers = Peers::new(&settings.endpoint, settings.peers.clone(), &[], now);
        let peers = SharedPeers::new(peers);
        let version = peers.version();
        settings.endpoint.common.limits.max_connections = 7;
        settings.endpoint.server.rate_limit = Some(1000);
        let said = follow_peers(&peers, &settings.endpoint, None, now);
        assert!(said.is_empty(), "{said:?}");
        assert_eq!(peers.with(|peers| peers.max_connected()), 7);
        assert_ne!(
            peers.version(),
            version,
            "another limit is told to the worker"
        );
        let said = follow_peers(&peers, &settings.endpoint, Some(Vec::new()), now);
        assert_eq!(said, ["peers removed: client1"]);
    }

    /// A command may come before the server has a socket, and after it has read its files.
    #[test]
    fn what_is_changed_while_a_server_starts_is_read_once_it_can_be_told() {
        let (_folder, config, settings) = settings();
        let now = Instant::now();
        let start = || {
            let stamp = Stamp::of(&config);
            Reloader::server(config.clone(), settings.clone(), stamp)
        };
        let mut unchanged = start();
        unchanged.begin(false, now);
        assert_eq!(unchanged.poll_timeout(), None);
        unchanged.begin(true, now);
        let all = unchanged.demands.take_due(now, false);
        assert_eq!(all, Some((Scope::All, Vec::new())));

        let mut changed = start();
        let peer = config.with_file_name("peers.d/client1.toml");
        std::fs::rename(&peer, peer.with_file_name("other.toml")).unwrap();
        changed.begin(false, now);
        let peers = changed.demands.take_due(now, false);
        assert_eq!(peers, Some((Scope::Peers, Vec::new())));

        let mut changed = start();
        let draft = config.with_extension("new");
        std::fs::copy(&config, &draft).unwrap();
        std::fs::rename(&draft, &config).unwrap();
        changed.begin(false, now);
        assert_eq!(changed.poll_timeout(), Some(now));
    }

    #[test]
    fn a_status_names_the_first_problems_of_many() {
        let problem = |number: usize| lostlove_config::Problem {
            file: "a.toml".into(),
            position: None,
            key: format!("key{number}"),
            message: "unknown key".to_owned(),
        };
        let said = |count| first_problems(&ConfigError::Invalid((0..count).map(problem).collect()));
        assert_eq!(said(1), "a.toml: key0: unknown key");
        assert_eq!(said(MAX_PROBLEMS).lines().count(), MAX_PROBLEMS);
        let many = said(MAX_PROBLEMS + 3);
        assert!(many.ends_with("key7: unknown key\nand 3 more"), "{many}");
    }

    #[test]
    fn many_names_are_counted() {
        let names = |count: usize| (0..count).map(|n| format!("p{n}")).collect::<Vec<_>>();
        let replaced = Replaced {
            added: names(2),
            altered: Vec::new(),
            removed: names(22),
        };
        let words = words_for(&replaced);
        assert_eq!(words[0], "peers added: p0, p1");
        assert!(words[1].ends_with("p19 and 2 more"), "{words:?}");
    }
}
