//! A link between two network namespaces, for kernels without netem: a TUN device in each, and a
//! relay that sends at a rate, delays and loses packets.
//!
//! It says `ready` on standard output once both devices exist, and runs until it is killed. The
//! devices vanish with it.
#![forbid(unsafe_code)]

mod line;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use lostlove_system::tun::{Offloads, Tun, TunConfig, VNET_HEADER_LEN};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use self::line::{Line, Properties};

/// Packets that are taken from one device before others have their turn.
const BURST: usize = 64;

/// Joins two network namespaces by an emulated link.
#[derive(Debug, Parser)]
struct Arguments {
    /// One namespace, as a file such as /run/netns/NAME.
    first: PathBuf,
    /// The other one.
    second: PathBuf,
    /// Name of the device in both.
    #[arg(long, default_value = "wire")]
    device: String,
    /// Megabits per second, each way.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rate_mbit: u32,
    /// Microseconds one way.
    #[arg(long, default_value_t = 10_000)]
    delay_us: u32,
    /// Per cent of the packets that are lost, each way.
    #[arg(long, default_value_t = 0.0)]
    loss_percent: f64,
    /// KiB that may wait to be sent, each way; then new packets are dropped.
    #[arg(long, default_value_t = 512)]
    queue_kib: u32,
    /// What losses are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Arguments {
    fn properties(&self) -> Properties {
        Properties {
            rate: u64::from(self.rate_mbit) * 1_000_000,
            delay: Duration::from_micros(self.delay_us.into()),
            queue: usize::try_from(self.queue_kib).map_or(usize::MAX, |kib| kib * 1024),
            loss: self.loss_percent / 100.0,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done about a closed stream.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let ends = [
        open(&arguments.first, &arguments.device)?,
        open(&arguments.second, &arguments.device)?,
    ];
    // Each direction loses packets of its own.
    let seeds = [arguments.seed, !arguments.seed];
    let lines = seeds.map(|seed| Line::new(arguments.properties(), seed));
    writeln!(io::stdout(), "ready")?;
    Link {
        ends,
        lines,
        buf: vec![0; usize::from(u16::MAX)],
        origin: Instant::now(),
    }
    .run()
}

/// Opens the device inside a namespace, on a thread that enters it.
fn open(namespace: &Path, device: &str) -> io::Result<Tun> {
    let config = TunConfig {
        name: device,
        offload: Offloads::NONE,
    };
    let enter_and_open = || {
        let file = File::open(namespace)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Tun::open(&config).map_err(io::Error::other)
    };
    let opened = thread::scope(|scope| scope.spawn(enter_and_open).join());
    opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Both devices; the line of an index starts at the device of that index.
struct Link {
    ends: [Tun; 2],
    lines: [Line; 2],
    buf: Vec<u8>,
    origin: Instant,
}

impl Link {
    fn run(mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            self.receive()?;
            self.deliver();
        }
    }

    /// Waits for a packet or an arrival.
    fn wait(&self) -> io::Result<()> {
        let arrivals = self.lines.iter().filter_map(Line::next_arrival);
        let timeout = arrivals.min().map(|next| {
            let left = next.saturating_sub(self.origin.elapsed());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let [first, second] = &self.ends;
        let mut fds = [
            PollFd::new(first, PollFlags::IN),
            PollFd::new(second, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes what waits in the devices, but lets nobody wait who is due.
    fn receive(&mut self) -> io::Result<()> {
        for (end, line) in self.ends.iter().zip(&mut self.lines) {
            for _ in 0..BURST {
                match end.recv(&mut self.buf) {
                    Ok(received) => {
                        line.push(&self.buf[..received.len], self.origin.elapsed());
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self) {
        let now = self.origin.elapsed();
        for (line, end) in self.lines.iter_mut().zip(self.ends.iter().rev()) {
            // A device that is down takes nothing, as a cable that is not plugged in.
            line.deliver(now, |packet| {
                let _ = end.send(packet, &[0; VNET_HEADER_LEN]);
            });
        }
    }
}
