//! What the demo does with its tunnel, and what it counts meanwhile.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lostlove_system::netns::Netns;

use super::daemon::Usage;
use super::ping::Pinger;
use super::setup::{CLIENT_V6, SERVER_V4, SERVER_V6, Tunnel};
use super::transfer::{self, Transfer};

/// Everything the table shows.
#[derive(Clone, Debug)]
pub(super) struct Measurements {
    pub(super) ping_v4: Pings,
    pub(super) ping_v6: Pings,
    /// Client to server, over IPv4.
    pub(super) upload: Load,
    /// Server to client, over IPv6.
    pub(super) download: Load,
    pub(super) server: Usage,
    pub(super) client: Usage,
}

/// A series of pings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pings {
    pub(super) sent: usize,
    /// The round-trip times of those that were answered, in ascending order.
    pub(super) times: Vec<Duration>,
}

impl Pings {
    /// The time that the given share of the answers did not exceed; zero without answers.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times.get(rank - 1).copied().unwrap_or_default()
    }
}

/// A transfer, and the pings that ran beside it.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) transfer: Transfer,
    pub(super) pings: Pings,
}

/// Waits for the tunnel, pings, and moves `bytes` bytes in each direction.
pub(super) fn measure(tunnel: &mut Tunnel, bytes: u64) -> io::Result<Measurements> {
    for address in [SERVER_V4, SERVER_V6] {
        wait_for(tunnel, address)?;
    }
    let (client, server) = (tunnel.client_netns.clone(), tunnel.server_netns.clone());
    Ok(Measurements {
        ping_v4: ping(&client, SERVER_V4)?,
        ping_v6: ping(&client, SERVER_V6)?,
        upload: load(&client, &server, SERVER_V4, bytes)?,
        download: load(&server, &client, CLIENT_V6, bytes)?,
        server: tunnel.server.usage()?,
        client: tunnel.client.usage()?,
    })
}

fn wait_for(tunnel: &mut Tunnel, address: IpAddr) -> io::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        if !tunnel.server.is_running() || !tunnel.client.is_running() {
            return Err(io::Error::other("a daemon ended at its start"));
        }
        // Without a route yet, sending fails at once.
        match inside(&tunnel.client_netns, || Pinger::new(address)?.ping(RETRY)) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(_) => thread::sleep(RETRY),
        }
    }
    let text = format!("the tunnel did not answer at {address}");
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

fn ping(from: &Netns, to: IpAddr) -> io::Result<Pings> {
    let left = std::cell::Cell::new(PINGS);
    let mut pinger = inside(from, || Pinger::new(to))?;
    ping_while(&mut pinger, || {
        left.replace(left.get().saturating_sub(1)) > 0
    })
}

fn ping_while(pinger: &mut Pinger, go_on: impl Fn() -> bool) -> io::Result<Pings> {
    let mut pings = Pings::default();
    while go_on() {
        pings.sent += 1;
        pings.times.extend(pinger.ping(PING_TIMEOUT)?);
        thread::sleep(PING_INTERVAL);
    }
    pings.times.sort_unstable();
    Ok(pings)
}

/// Moves data from one namespace to the address `to` in the other, with pings beside it.
fn load(from: &Netns, receiver: &Netns, to: IpAddr, bytes: u64) -> io::Result<Load> {
    let listener = inside(receiver, || TcpListener::bind(SocketAddr::new(to, 0)))?;
    let address = listener.local_addr()?;
    let mut pinger = inside(from, || Pinger::new(to))?;
    let stream = inside(from, || TcpStream::connect_timeout(&address, STALL_TIMEOUT))?;
    stream.set_read_timeout(Some(STALL_TIMEOUT))?;
    stream.set_write_timeout(Some(STALL_TIMEOUT))?;
    let running = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| transfer::receive(&listener, STALL_TIMEOUT));
        let pings = scope.spawn(|| ping_while(&mut pinger, || running.load(Ordering::Relaxed)));
        let transfer = transfer::send(stream, bytes);
        running.store(false, Ordering::Relaxed);
        let pings = pings
            .join()
            .map_err(|_| io::Error::other("pinging failed"))??;
        Ok(Load {
            transfer: transfer?,
            pings,
        })
    })
}

fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    netns.run(work).map_err(io::Error::other)?
}

/// Pings in each family while the tunnel is idle.
const PINGS: usize = 100;
/// From one answer to the next request, so that pings are no load themselves.
const PING_INTERVAL: Duration = Duration::from_millis(5);
/// Ten times what a queue in the tunnel may hold.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// From starting the daemons to the first answer.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(50);
/// Without any progress for so long, a transfer has failed.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let ms = Duration::from_millis;
        let pings = Pings {
            sent: 5,
            times: [1, 2, 3, 40].map(ms).to_vec(),
        };
        assert_eq!(pings.percentile(50), ms(2));
        assert_eq!(pings.percentile(99), ms(40));
        assert_eq!(pings.percentile(0), ms(1));
        assert_eq!(Pings::default().percentile(50), Duration::ZERO);
    }
}
