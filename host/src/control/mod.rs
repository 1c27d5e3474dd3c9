//! The control socket: what a daemon tells of itself, and what it can be told to do while it runs.
//!
//! `docs/control.md` is its law. The types of [`protocol`] and [`status`] are both ends': a daemon
//! writes them, the program `lostlove` reads them.

pub mod files;
pub mod protocol;
pub mod status;

mod gather;
mod history;
mod serve;

use std::io;
use std::sync::Arc;

use lostlove_system::control_socket::ControlSocket;
use lostlove_system::wake::Wake;

pub(crate) use gather::{Facts, Material};
pub(crate) use history::{ClientMaterial, History};

use crate::mailbox::{Mailbox, Report};
use crate::threads::{Thread, Threads};
use protocol::{Answer, Request};
use serve::Service;

/// The socket, and what does not change of what is told there.
#[derive(Debug)]
pub struct ControlParts {
    pub(crate) socket: ControlSocket,
    pub(crate) facts: Facts,
}

/// Names one client of the socket. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asker(pub(crate) u64);

/// What clients want of the daemon.
#[derive(Debug)]
pub(crate) enum Wish {
    /// Its state, for all who wait for that.
    Status,
    /// Something of its own for one client.
    Of(Asker, Request),
}

/// What comes of it.
#[derive(Debug)]
pub(crate) enum Reply {
    Status(Box<Material>),
    To(Asker, Answer),
}

/// Serves the control socket on a thread of its own. Wishes come as [`Report::Control`], and none of its
/// methods waits for a client.
#[derive(Debug)]
pub(crate) struct Control {
    replies: Arc<Mailbox<Reply>>,
    stop: Arc<Wake>,
    thread: Option<Thread<()>>,
}

impl Control {
    pub(crate) fn start(
        mut parts: ControlParts,
        threads: &Threads,
        reports: Arc<Mailbox<Report>>,
    ) -> io::Result<Self> {
        let replies = Arc::new(Mailbox::new()?);
        let stop = Arc::new(Wake::new()?);
        let for_thread = (Arc::clone(&replies), Arc::clone(&stop));
        let serve = move || {
            let (replies, stop) = for_thread;
            let wish = |wish| reports.post(Report::Control(wish));
            Service::new(&mut parts, &replies, &stop, &wish).run();
        };
        Ok(Self {
            replies,
            stop,
            thread: Some(threads.spawn("control", serve)?),
        })
    }

    /// Answers a wish.
    pub(crate) fn reply(&self, reply: Reply) {
        self.replies.post(reply);
    }
}

impl Drop for Control {
    /// Serves no more, removes the socket, and waits for the thread.
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}
