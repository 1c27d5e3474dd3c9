//! Paths that change, die or are merely slow, and what is demanded of the clients on them.

use core::time::Duration;

use lostlove_core::event::{CloseReason, Event};
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;

use crate::choice::Choice;
use crate::link::End;
use crate::options::Action;
use crate::worker::Loop;
use crate::world::{Failure, World};

/// How long a path takes packets one way only: after that, the other end's TCP waits for
/// acknowledgements.
const UNACKNOWLEDGED: Duration = Duration::from_secs(1);
/// Silence that is no reason to doubt a path.
const MIN_PATIENCE: Duration = Duration::from_secs(3);
/// Round trips that an answer may take.
const PATIENCE_ROUND_TRIPS: u32 = 4;

/// What becomes of the paths in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paths {
    /// All kinds of things happen, so that little can be said of when a client notices what.
    Mixed,
    /// They change and die, and nothing else disturbs their clients, which must be elsewhere in time.
    Watched,
    /// They are slow and lossy, and nothing disturbs their clients, which must stay.
    Slow,
}

impl Paths {
    pub(crate) fn draw(choice: &mut Choice) -> Self {
        match choice.range(0, 19) {
            0..=2 => Self::Watched,
            3..=4 => Self::Slow,
            _ => Self::Mixed,
        }
    }

    /// What else may happen, and how often.
    pub(crate) fn weights(self, choice: &mut Choice) -> Vec<(Action, u32)> {
        let kinds: &[Action] = match self {
            Self::Mixed if choice.chance(300) => &[Action::Mute, Action::Roam, Action::Alarm],
            Self::Mixed => &[],
            Self::Watched => &[
                Action::Burst,
                Action::Wait,
                Action::Death,
                Action::Mute,
                Action::Roam,
                Action::Alarm,
            ],
            Self::Slow => &[
                Action::Burst,
                Action::Spoof,
                Action::Junk,
                Action::TunFull,
                Action::Wait,
            ],
        };
        let weight = |choice: &mut Choice, action| match action {
            Action::Burst => 60,
            _ => choice.pick(&[1, 3, 10]),
        };
        let kinds = kinds.iter();
        kinds.map(|kind| (*kind, weight(choice, *kind))).collect()
    }
}

/// What is demanded of a client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    /// When it last asked for a connection.
    dialled_at: Option<Instant>,
    /// When it must have a session on a path that works.
    elsewhere_by: Option<Instant>,
}

impl World {
    /// One direction of a connection lets nothing through any more, and the other one not for long.
    pub(crate) fn mute(&mut self, link: usize, from: usize) {
        let now = self.now;
        let link = &mut self.links[link];
        link.doomed_at.get_or_insert(now);
        link.pipes[from].is_dead = true;
        link.pipes[1 - from].dies_at = Some(now + UNACKNOWLEDGED);
        self.forgive(None);
    }

    /// A client's address changes, so that its connections are dead, and its host says so.
    pub(crate) fn roam(&mut self) -> Result<(), Failure> {
        let Some(n) = self.some_client_awake() else {
            return Ok(());
        };
        let now = self.now;
        for link in &mut self.links {
            if link.ends[0] == End::Node(n) {
                link.die(now);
            }
        }
        let node = &mut self.nodes[n];
        if let Some(dial) = &mut node.dial {
            dial.works = false;
        }
        let had_session = node.session.is_some();
        self.forgive(Some(n));
        if had_session {
            let by = now + self.one_way() * 6 + Duration::from_millis(200);
            self.demands[n].elsewhere_by = Some(by);
        }
        self.change_path(n)
    }

    /// A client's host says that its path has changed, which has not.
    pub(crate) fn alarm(&mut self) -> Result<(), Failure> {
        match self.some_client_awake() {
            Some(n) => {
                self.forgive(Some(n));
                self.change_path(n)
            }
            None => Ok(()),
        }
    }

    /// A machine that has slept for long says so when it wakes.
    pub(crate) fn wake(&mut self, n: usize) -> Result<(), Failure> {
        if n == 0 || !self.paths.chance(700) {
            return Ok(());
        }
        self.change_path(n)
    }

    fn some_client_awake(&mut self) -> Option<usize> {
        let n = self.choice.size(1, self.options.clients());
        self.nodes[n].asleep_until.is_none().then_some(n)
    }

    fn change_path(&mut self, n: usize) -> Result<(), Failure> {
        let now = self.now;
        let Loop {
            endpoint, entropy, ..
        } = &mut self.nodes[n].workers[0];
        endpoint.handle_path_changed(&mut Turn { now, entropy });
        self.turn_all(n)
    }

    /// What happens now may be more than a client can be expected to deal with in time: client `n`, or
    /// all.
    pub(crate) fn forgive(&mut self, n: Option<usize>) {
        for (of, demand) in self.demands.iter_mut().enumerate() {
            if n.is_none_or(|n| n == of) {
                demand.elsewhere_by = None;
            }
        }
    }

    fn one_way(&self) -> Duration {
        let network = &self.options.network;
        network.latency + network.jitter
    }

    /// Takes note of what a client's endpoint tells.
    pub(crate) fn note_of_path(&mut self, n: usize, event: &Event) -> Result<(), Failure> {
        if matches!(event, Event::Dial { .. }) {
            self.demands[n].dialled_at = Some(self.now);
        }
        // Another one may have been tried, if it has come to nothing.
        let leaves = matches!(
            event,
            Event::Closed {
                reason: CloseReason::Redundant,
                peer: Some(_),
                ..
            }
        );
        let is_wrong = self.options.paths == Paths::Slow && leaves && !self.is_ending;
        self.unsafe_if(is_wrong.then(|| format!("client {n} has left a path that is merely slow")))
    }

    /// Demands that no client stays where nothing gets through.
    pub(crate) fn judge_paths(&self) -> Result<(), Failure> {
        if self.options.paths != Paths::Watched || self.is_ending {
            return Ok(());
        }
        for n in 1..self.nodes.len() {
            self.unsafe_if(self.stays_too_long(n))?;
        }
        Ok(())
    }

    fn stays_too_long(&self, n: usize) -> Option<String> {
        let (node, demand) = (&self.nodes[n], &self.demands[n]);
        let on = node.session.map(|link| &self.links[link]);
        let doomed_at = on.and_then(|link| link.doomed_at);
        if demand.elsewhere_by.is_some_and(|by| by < self.now)
            && (on.is_none() || doomed_at.is_some())
        {
            return Some(format!(
                "client {n} has not come back after its path changed"
            ));
        }
        let (link, doomed_at) = (on?, doomed_at?);
        // It may have tried, in vain.
        let has_tried = demand.dialled_at >= Some(doomed_at) || node.sockets().count() > 1;
        let limits = &self.options.limits;
        let asks_by = doomed_at + UNACKNOWLEDGED + limits.keepalive_interval;
        let spoke_at = link.pipes[0].spoke_at.unwrap_or(asks_by);
        let round_trip = self.one_way() * 2 + Duration::from_millis(10);
        let patience = MIN_PATIENCE.max(round_trip * PATIENCE_ROUND_TRIPS);
        let by = spoke_at + patience + round_trip;
        let is_late = !has_tried && node.dial.is_none() && by < self.now;
        is_late.then(|| {
            let now = self.now;
            format!(
                "client {n} stays on a path that is dead: {now:?}, since {doomed_at:?}, \
                 spoke at {:?}",
                link.pipes[0].spoke_at
            )
        })
    }
}
