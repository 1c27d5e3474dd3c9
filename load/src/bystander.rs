//! A client that only pings while others make load, on a thread that goes before theirs: how long its pings
//! take is the server's doing, where those of busy clients also wait for this program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::fleet::{Fleet, Profile};
use crate::identity::BYSTANDER;
use crate::ledger::{Faults, Tally};
use crate::pace::Pace;
use crate::packet::{PING_LEN, Way};

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// How long answers under way at the end have to arrive, and its good-bye to be sent.
const SETTLE: Duration = Duration::from_millis(500);
/// How long it waits before it looks whether it is over.
const TURN: Duration = Duration::from_millis(10);
/// Before whatever else wants the CPU, as far as niceness goes.
const NICENESS: i32 = -20;

/// The client while it pings.
pub(crate) struct Bystander {
    thread: JoinHandle<io::Result<Pinged>>,
    is_over: Arc<AtomicBool>,
}

/// What became of its pings.
pub(crate) struct Pinged {
    pub(crate) tally: Tally,
    pub(crate) faults: Faults,
}

impl Bystander {
    /// Connects, and pings so often from then on.
    ///
    /// # Errors
    ///
    /// If it does not come to a session within ten seconds.
    pub(crate) fn start(profile: Profile, per_second: u64) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (up, is_up) = mpsc::channel();
        let told = Arc::clone(&is_over);
        let thread = thread::Builder::new()
            .name("bystander".to_owned())
            .spawn(move || stand_by(profile, per_second, &up, &told))?;
        let bystander = Self { thread, is_over };
        if is_up.recv_timeout(CONNECT).is_ok() {
            return Ok(bystander);
        }
        bystander.finish()?;
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Has it ping no more.
    pub(crate) fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// If it has failed meanwhile.
    pub(crate) fn finish(self) -> io::Result<Pinged> {
        self.stop();
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
    }
}

fn stand_by(
    profile: Profile,
    per_second: u64,
    up: &Sender<()>,
    is_over: &AtomicBool,
) -> io::Result<Pinged> {
    // Only root may; else it takes turns with the others.
    let _ = rustix::process::setpriority_process(None, NICENESS);
    let mut fleet = Fleet::new(profile, BYSTANDER, 1)?;
    fleet.add();
    while !fleet.is_up(0) && !is_over.load(Ordering::Relaxed) {
        fleet.turn(TURN)?;
    }
    // Who gave up waiting needs no word.
    let _ = up.send(());
    let mut pace = Pace::new(per_second, fleet.now());
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..pace.take(fleet.now(), per_second) {
            if fleet.is_up(0) {
                fleet.send_from(0, Way::Echo, PING_LEN);
            }
        }
        fleet.turn(pace.interval().min(TURN))?;
    }
    settle(&mut fleet)?;
    let ledger = fleet.ledger().borrow();
    Ok(Pinged {
        tally: ledger.tally().clone(),
        faults: ledger.faults.clone(),
    })
}

fn settle(fleet: &mut Fleet) -> io::Result<()> {
    let until = fleet.now() + SETTLE;
    while fleet.now() < until && fleet.ledger().borrow().in_flight(Way::Echo) > 0 {
        fleet.turn(TURN)?;
    }
    fleet.leave(0);
    while fleet.now() < until && !fleet.has_left(0) {
        fleet.turn(TURN)?;
    }
    Ok(())
}
