//! What the daemon tells on its control socket, and what it does about wishes from there.
//!
//! The worker is asked for portions, so that packets have their turn between them; the peers are copied
//! in portions as well. What is made of it is the control thread's affair.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use lostlove_core::config::Role;
use lostlove_core::figures::SessionFigures;
use lostlove_core::peers::PeerId;
use lostlove_system::net::PassageFigures;
use tracing::info;

use super::events::PAUSE;
use super::reload::Scope;
use super::{Daemon, ReloadOutcome};
use crate::control::files::Files;
use crate::control::protocol::{self, Answer, Body, ErrorCode, Failure, Only, Reloaded, Request};
use crate::control::status::State;
use crate::control::{
    Asker, ClientMaterial, Control, ControlParts, History, Material, Reply, Wish,
};
use crate::log;
use crate::mailbox::{Figures, Mailbox, Order, Report, Sessions};
use crate::threads::Threads;

/// The control socket's side of the daemon.
#[derive(Debug, Default)]
pub(super) struct Controlling {
    /// None for a daemon without such a socket.
    control: Option<Control>,
    /// What has become of a client's connections.
    pub(super) history: History,
    /// Why the configuration could not be used when it was last read again.
    pub(super) reload_error: Option<String>,
    /// What others let pass of a server's packets.
    pub(super) passage: PassageFigures,
    /// What a status is made of, as far as the worker has told.
    gathering: Option<Gathering>,
}

#[derive(Debug, Default)]
struct Gathering {
    figures: Option<Figures>,
    sessions: Vec<SessionFigures>,
}

impl Controlling {
    pub(super) fn start(
        parts: Option<ControlParts>,
        threads: &Threads,
        reports: &Arc<Mailbox<Report>>,
    ) -> io::Result<Self> {
        let start = |parts| Control::start(parts, threads, Arc::clone(reports));
        Ok(Self {
            control: parts.map(start).transpose()?,
            ..Self::default()
        })
    }

    /// Serves no more; the socket is gone then.
    pub(super) fn stop(&mut self) {
        self.control = None;
    }

    fn reply(&self, reply: Reply) {
        if let Some(control) = &self.control {
            control.reply(reply);
        }
    }
}

impl Daemon {
    pub(super) fn handle_wish(&mut self, wish: Wish) {
        let (asker, request) = match wish {
            Wish::Status => return self.begin_gathering(),
            Wish::Of(asker, request) => (asker, request),
        };
        let answer = match request {
            // They are asked for together.
            Request::Status { .. } => return,
            Request::Disconnect { peer, .. } => match self.find(&peer) {
                Ok(id) => return self.order(Order::Disconnect(asker, id)),
                Err(failure) => failure.into(),
            },
            Request::LogLevel { level, .. } => set_level(level.as_deref()),
            Request::Reload { only, files, .. } => match self.judge_reload(only, files) {
                Ok(scope) => return self.reload_for(asker, scope),
                Err(failure) => failure.into(),
            },
        };
        self.control.reply(Reply::To(asker, answer));
    }

    /// The peer of a name, whose session can be ended.
    fn find(&self, name: &str) -> Result<PeerId, Failure> {
        let Some(peers) = &self.peers else {
            let what = "this is a client, which has no peers; to end it, end its process";
            return Err(Failure::new(ErrorCode::NotAServer, what));
        };
        if self.worker.is_none() || self.readiness.is_ending() {
            return Err(Failure::new(ErrorCode::Ending, "the server is not running"));
        }
        let found = peers.find_name(name, || thread::sleep(PAUSE));
        found.ok_or_else(|| {
            let what = "there is no peer of this name; `lostlove status` lists them";
            Failure::new(ErrorCode::NoSuchPeer, what)
        })
    }

    /// What of the configuration is to be read, if it is the one that is meant.
    fn judge_reload(&self, only: Option<Only>, files: Option<Files>) -> Result<Scope, Failure> {
        let reads = |files: Files| {
            let reloader = self.reloader.as_ref();
            reloader.is_some_and(|reloader| reloader.reads(&files))
        };
        if !files.is_none_or(reads) {
            let what = "this daemon reads other files; `lostlove status` names its configuration";
            return Err(Failure::new(ErrorCode::OtherConfiguration, what));
        }
        match (only, self.role) {
            (None, _) => Ok(Scope::All),
            (Some(Only::Peers), Role::Server) => Ok(Scope::Peers),
            (Some(Only::Peers), Role::Client) => {
                let what = "this is a client, which has no peers";
                Err(Failure::new(ErrorCode::NotAServer, what))
            }
        }
    }

    /// Has the configuration read soon, together with all others who want that.
    fn reload_for(&mut self, asker: Asker, scope: Scope) {
        match &mut self.reloader {
            _ if self.readiness.is_ending() => self.answer_reload(&[asker], None),
            Some(reloader) => reloader.demand_for(asker, scope, Instant::now()),
            None => self.answer_reload(&[asker], Some(ReloadOutcome::default())),
        }
    }

    /// Tells what has come of a reload; none if there is none, as the daemon is ending.
    pub(super) fn answer_reload(&self, askers: &[Asker], outcome: Option<ReloadOutcome>) {
        let answer: Answer = match outcome {
            None => Failure::new(ErrorCode::Ending, "the daemon is ending").into(),
            Some(ReloadOutcome {
                error: Some(problem),
                ..
            }) => Failure::new(ErrorCode::BadConfiguration, problem).into(),
            Some(outcome) => Body::Reloaded(Reloaded {
                applied: outcome.applied,
                needs_restart: outcome.needs_restart,
                waiting: outcome.waiting,
            })
            .into(),
        };
        for asker in askers {
            self.control.reply(Reply::To(*asker, answer.clone()));
        }
    }

    pub(super) fn handle_disconnected(&self, asker: Asker, was_connected: bool) {
        let answer = if was_connected {
            Answer::done("its session is closed; it may come back")
        } else {
            Failure::new(ErrorCode::NotConnected, "this peer has no session").into()
        };
        self.control.reply(Reply::To(asker, answer));
    }

    fn begin_gathering(&mut self) {
        // Whoever asks meanwhile is served by what is under way.
        if self.control.gathering.is_some() {
            return;
        }
        self.control.gathering = Some(Gathering::default());
        if self.worker.is_some() {
            self.order(Order::TellSessions(0));
        } else {
            self.finish_gathering();
        }
    }

    pub(super) fn handle_sessions(&mut self, portion: Sessions) {
        let Some(gathering) = &mut self.control.gathering else {
            return;
        };
        gathering.sessions.extend(portion.sessions);
        if portion.figures.is_some() {
            gathering.figures = portion.figures;
        }
        match portion.next {
            Some(next) => self.order(Order::TellSessions(next)),
            None => self.finish_gathering(),
        }
    }

    /// The worker tells nothing any more: what there is has to do.
    pub(super) fn give_up_gathering(&mut self) {
        if self.control.gathering.is_some() {
            self.finish_gathering();
        }
    }

    fn finish_gathering(&mut self) {
        let Gathering { figures, sessions } = self.control.gathering.take().unwrap_or_default();
        let (stats, servers) = match figures {
            Some(Figures { stats, peers, .. }) => (stats, peers),
            None => (self.stats.clone(), Vec::new()),
        };
        let peers = self.peers.as_ref();
        let max_sessions = peers.map(|peers| peers.with(|peers| peers.max_connected()));
        let peers = peers.map(|peers| peers.figures(|| thread::sleep(PAUSE)));
        let now = Instant::now();
        let client = (self.role == Role::Client).then(|| {
            let mut client = ClientMaterial::new(&self.control.history, now);
            client.count(servers.first());
            client
        });
        self.control.reply(Reply::Status(Box::new(Material {
            at: now,
            state: self.state(),
            problem: self.readiness.problem().map(str::to_owned),
            log_level: log::level_set(),
            reload_error: self.control.reload_error.clone(),
            tun_dropped: self.tun_dropped(),
            passage: self.control.passage,
            stats,
            sessions,
            max_sessions: max_sessions.unwrap_or_default(),
            peers: peers.unwrap_or_default(),
            client,
        })));
    }

    const fn state(&self) -> State {
        let readiness = &self.readiness;
        match self.role {
            _ if readiness.is_ending() => State::Ending,
            _ if !readiness.has_begun() => State::Starting,
            Role::Server => State::Listening,
            Role::Client => self.control.history.state(readiness.is_configured()),
        }
    }
}

const DEFAULT_LEVEL: &str =
    "the log's level is what --log-level, RUST_LOG or else the configuration says";

/// Logs at another level, until the daemon ends.
fn set_level(text: Option<&str>) -> Answer {
    let level = match text.map(protocol::level).transpose() {
        Ok(level) => level,
        Err(failure) => return failure.into(),
    };
    if !log::set_level(level) {
        return Failure::new(ErrorCode::Busy, "there is no log yet").into();
    }
    match level {
        Some(level) => {
            info!(%level, "the log's level was set by a request");
            Answer::done(format!("the log's level is {level} until the daemon ends"))
        }
        None => {
            info!("{DEFAULT_LEVEL}");
            Answer::done(DEFAULT_LEVEL)
        }
    }
}
