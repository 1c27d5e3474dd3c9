//! A client's driver on `poll`, with one thread.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use lostlove_core::endpoint::Endpoint;
use lostlove_core::event::{ConnectionId, Event};
use lostlove_core::time::Instant;
use lostlove_core::turn::Turn;
use lostlove_pump as pump;
use lostlove_pump::{PacketDevice, Progress};
use lostlove_system::clock::Clock;
use lostlove_system::entropy::SystemEntropy;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) struct Driver<D> {
    pub(crate) endpoint: Endpoint,
    pub(crate) device: D,
    pub(crate) clock: Clock,
    pub(crate) entropy: SystemEntropy,
    pub(crate) server: SocketAddr,
    /// Two, while the endpoint doubts the one and tries another beside it.
    pub(crate) connections: Vec<Connection>,
}

pub(crate) struct Connection {
    id: ConnectionId,
    socket: TcpStream,
    is_blocked: bool,
}

impl<D: PacketDevice + AsFd> Driver<D> {
    /// Tells the server good-bye; [`Self::run`] then comes to an end.
    pub(crate) fn shut_down(&mut self) -> io::Result<()> {
        let now = self.clock.now();
        self.endpoint.shut_down(now);
        self.settle(now)
    }

    /// Runs until the endpoint has been shut down.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        while !self.endpoint.is_shut_down() {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits once, and does what there is to do.
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        let (device, sockets) = self.wait()?;
        let now = self.clock.now();
        let entropy = &mut self.entropy;
        let turn = &mut Turn { now, entropy };
        self.endpoint.handle_timeout(turn);
        for (connection, socket) in self.connections.iter_mut().zip(sockets) {
            if socket.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
                connection.is_blocked = false;
                connection.flush(&mut self.endpoint, now);
            }
            if socket.intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP) {
                let (id, socket) = (connection.id, &connection.socket);
                pump::fill(&mut self.endpoint, id, socket, &self.device, turn);
            }
        }
        if !device.is_empty() {
            pump::drain_device(&mut self.endpoint, &self.device, now)?;
        }
        self.settle(now)
    }

    /// Waits for the device, for the sockets, or for the next deadline, and tells what the first
    /// two are ready for. What was left over by the last turn is still ready.
    fn wait(&self) -> io::Result<(PollFlags, Vec<PollFlags>)> {
        let now = self.clock.now();
        let timeout = self.endpoint.poll_timeout().map(|at| at.since(now));
        let timeout = timeout.and_then(|wait| Timespec::try_from(wait).ok());
        let mut fds = vec![PollFd::new(&self.device, PollFlags::IN)];
        for connection in &self.connections {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, connection.is_blocked);
            fds.push(PollFd::new(&connection.socket, flags));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(PollFd::revents);
        let device = ready.next().unwrap_or(PollFlags::empty());
        Ok((device, ready.collect()))
    }

    /// Writes what is to be written, and does what the endpoint asks for, until it asks no more.
    fn settle(&mut self, now: Instant) -> io::Result<()> {
        loop {
            while let Some(id) = self.endpoint.poll_transmit() {
                let mut open = self.connections.iter_mut();
                if let Some(connection) = open.find(|open| open.id == id) {
                    connection.flush(&mut self.endpoint, now);
                }
            }
            match self.endpoint.poll_event() {
                Some(Event::Dial { .. }) => self.dial(now),
                // Here a real client gives the device its addresses and routes, and may refuse them.
                Some(Event::Assigned { id, .. }) => self.endpoint.accept_assignment(id),
                Some(
                    Event::Established { .. }
                    | Event::ProbeEstablished { .. }
                    | Event::Lost { .. }
                    | Event::Ended { .. }
                    | Event::Rejected { .. }
                    | Event::Crowded { .. }
                    | Event::SourceCrowded { .. },
                ) => {}
                // The endpoint has found out by itself; a real driver would say so.
                Some(Event::OffloadRefused { .. } | Event::Looping { .. }) => {}
                // What was set up for it could be taken back.
                Some(Event::Unassigned) => {}
                // A good moment to ask the allocator for what it keeps.
                Some(Event::MemoryFreed) => {}
                // A server would write down who has which address.
                Some(Event::Leased { .. } | Event::Released { .. }) => {}
                Some(Event::Closed { id, .. }) => {
                    self.connections.retain(|open| open.id != id);
                }
                None => return Ok(()),
            }
        }
    }

    fn dial(&mut self, now: Instant) {
        let connected = TcpStream::connect(self.server).and_then(|socket| {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let Ok(socket) = connected else {
            self.endpoint.handle_dial_failed(now);
            return;
        };
        let entropy = &mut self.entropy;
        let turn = &mut Turn { now, entropy };
        match self.endpoint.handle_connected(self.server, turn) {
            Ok(id) => {
                self.connections.push(Connection {
                    id,
                    socket,
                    is_blocked: false,
                });
            }
            Err(_) => self.endpoint.handle_dial_failed(now),
        }
    }
}

impl Connection {
    fn flush(&mut self, endpoint: &mut Endpoint, now: Instant) {
        while !self.is_blocked {
            match pump::flush(endpoint, self.id, &self.socket, now) {
                Progress::Ready => {}
                Progress::Blocked => self.is_blocked = true,
                Progress::Done | Progress::Closed => return,
            }
        }
    }
}
