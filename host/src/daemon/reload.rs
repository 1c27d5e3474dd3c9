//! The configuration, read again while the daemon runs: what has changed is applied, or is said to
//! need a restart.

mod differences;

use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lostlove_config::{ClientSettings, ConfigError, LogLevel, ServerSettings};
use lostlove_core::config::{Peer, ServerConfig};
use lostlove_core::peers::{Replaced, SharedPeers};
use lostlove_core::time;
use lostlove_system::limits::raise_descriptor_limit;
use tracing::{error, info, warn};

use self::differences::Differences;
use super::Daemon;
use crate::control::Asker;
use crate::log;
use crate::mailbox::Order;

/// Signals and requests that follow each other within this time are answered by one reload.
const APART: Duration = Duration::from_secs(1);
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
    /// What is wrong with the files. Then nothing has changed.
    pub error: Option<String>,
}

/// Knows where the configuration is, and what of it is in force.
#[derive(Debug)]
pub struct Reloader {
    config: PathBuf,
    in_force: InForce,
    /// When it was read last on demand.
    read_at: Option<Instant>,
    /// When it is to be read.
    due_at: Option<Instant>,
    /// Clients of the control socket that are told what has come of it.
    askers: Vec<Asker>,
}

/// Without peers, which are where they belong.
#[derive(Debug)]
enum InForce {
    Server(Box<ServerSettings>),
    Client(Box<ClientSettings>),
}

impl Reloader {
    /// For a server that has started with these settings.
    pub fn server(config: PathBuf, mut settings: ServerSettings) -> Self {
        settings.peers = Vec::new();
        Self::new(config, InForce::Server(Box::new(settings)))
    }

    /// For a client that has started with these settings.
    pub fn client(config: PathBuf, settings: ClientSettings) -> Self {
        Self::new(config, InForce::Client(Box::new(settings)))
    }

    const fn new(config: PathBuf, in_force: InForce) -> Self {
        Self {
            config,
            in_force,
            read_at: None,
            due_at: None,
            askers: Vec::new(),
        }
    }

    /// The file.
    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    /// When it is to be read.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.due_at
    }

    /// Somebody wants it read.
    pub(super) fn demand(&mut self, now: Instant) {
        let earliest = self.read_at.map_or(now, |at| at + APART);
        self.due_at.get_or_insert(earliest.max(now));
    }

    /// A client of the control socket wants it read, and waits for what comes of it.
    pub(super) fn demand_for(&mut self, asker: Asker, now: Instant) {
        self.askers.push(asker);
        self.demand(now);
    }

    /// If it is to be read now, those who are to be told. Nobody waits for what will not be read because
    /// the daemon `is_ending`.
    fn take_due(&mut self, now: Instant, is_ending: bool) -> Option<Vec<Asker>> {
        self.due_at.take_if(|at| is_ending || *at <= now)?;
        Some(mem::take(&mut self.askers))
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
        let Some(askers) = reloader.and_then(|it| it.take_due(now, is_ending)) else {
            return;
        };
        let outcome = (!is_ending).then(|| self.reload());
        self.answer_reload(&askers, outcome);
    }

    /// Reads the configuration again, applies what can be applied, and says so in the log. A file that
    /// cannot be used changes nothing.
    fn reload(&mut self) -> ReloadOutcome {
        let Some(mut reloader) = self.reloader.take() else {
            return ReloadOutcome::default();
        };
        let result = self.read_again(&mut reloader);
        reloader.read_at = Some(Instant::now());
        let config = reloader.config.display().to_string();
        self.reloader = Some(reloader);
        self.metrics.note_reload(result.is_ok());
        self.control.reload_error = result.as_ref().err().map(first_problems);
        match result {
            Ok(outcome) => {
                tell(&config, &outcome);
                outcome
            }
            Err(problem) => {
                let problem = problem.to_string();
                for line in problem.lines() {
                    error!("{line}");
                }
                error!(
                    config,
                    "the configuration cannot be used, and nothing has changed"
                );
                ReloadOutcome {
                    error: Some(problem),
                    ..ReloadOutcome::default()
                }
            }
        }
    }

    fn read_again(&mut self, reloader: &mut Reloader) -> Result<ReloadOutcome, ConfigError> {
        match &mut reloader.in_force {
            InForce::Server(known) => {
                let settings = lostlove_config::load_server(&reloader.config)?;
                warn_of(&settings.warnings);
                Ok(self.follow_server(known, settings))
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
        let is_same_tunnel = known.endpoint.server.address_v4 == new.endpoint.server.address_v4
            && known.endpoint.server.address_v6 == new.endpoint.server.address_v6;
        let peers = is_same_tunnel.then(|| mem::take(&mut new.peers));
        if peers.is_none() {
            // They are judged by a network that is not there yet.
            found.needs_restart.push("peers".to_owned());
        }
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
            error: None,
        }
    }
}

fn warn_of(warnings: &[String]) {
    for warning in warnings {
        warn!("{warning}");
    }
}

fn tell(config: &str, outcome: &ReloadOutcome) {
    let list = |names: &[String]| (!names.is_empty()).then(|| names.join("; "));
    let applied = list(&outcome.applied);
    let needs_restart = list(&outcome.needs_restart);
    if applied.is_none() && needs_restart.is_none() {
        info!(
            config,
            "the configuration was read again, and nothing has changed"
        );
    } else if needs_restart.is_none() {
        info!(config, applied, "the configuration was read again");
    } else {
        warn!(
            config,
            applied, needs_restart, "the configuration was read again; some of it needs a restart"
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
    fn all_who_ask_within_a_second_are_told_of_one_reload() {
        let (_folder, config, settings) = settings();
        let mut reloader = Reloader::server(config, settings);
        let start = Instant::now();
        reloader.demand_for(Asker(1), start);
        reloader.demand(start);
        reloader.demand_for(Asker(2), start);
        let told = reloader.take_due(start, false);
        assert_eq!(told, Some(vec![Asker(1), Asker(2)]));
        assert_eq!(reloader.take_due(start, false), None);
        reloader.read_at = Some(start);
        for (asker, milli) in [(3, 1), (4, 999)] {
            let now = start + Duration::from_millis(milli);
            reloader.demand_for(Asker(asker), now);
            assert_eq!(reloader.take_due(now, false), None);
        }
        let told = reloader.take_due(start + APART, false);
        assert_eq!(told, Some(vec![Asker(3), Asker(4)]));
    }

    #[test]
    fn a_daemon_that_ends_keeps_nobody_waiting_for_a_reload() {
        let (_folder, config, settings) = settings();
        let mut reloader = Reloader::server(config, settings);
        let start = Instant::now();
        assert_eq!(reloader.take_due(start, true), None);
        reloader.read_at = Some(start);
        reloader.demand_for(Asker(1), start);
        assert_eq!(reloader.take_due(start, true), Some(vec![Asker(1)]));
        assert_eq!(reloader.poll_timeout(), None);
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

    #[test]
    fn demands_that_follow_each_other_are_answered_by_one_reload_a_second() {
        let (_folder, config, settings) = settings();
        let mut reloader = Reloader::server(config, settings);
        let start = Instant::now();
        reloader.demand(start);
        assert_eq!(reloader.poll_timeout(), Some(start));
        reloader.due_at = None;
        reloader.read_at = Some(start);
        for milli in [1, 10, 999] {
            reloader.demand(start + Duration::from_millis(milli));
            assert_eq!(reloader.poll_timeout(), Some(start + APART));
        }
        reloader.due_at = None;
        reloader.demand(start + 5 * APART);
        assert_eq!(reloader.poll_timeout(), Some(start + 5 * APART));
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
