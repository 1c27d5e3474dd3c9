//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use lostlove_core::config::{MAX_MTU, MIN_IPV6_MTU};
use lostlove_core::crypto::Suite;

use crate::identity::MAX_CLIENTS;
use crate::settings::Setting;
use crate::steps::{Direction, Step};

const AFTER_HELP: &str = "\
Steps, which follow each other; a key that is left out has the value shown:
  storm:rate=N,seconds=120       all clients connect, at once or N per second; within so many seconds
  hold:seconds=30                sessions do nothing
  churn:rate=50,seconds=20       sessions end and come back, so many per second
  restart:seconds=120            the server is restarted; all are back within so many seconds
  traffic:way=up,size=1400,active=ALL,rate=MAX,window=256,pings=50,bystander=50,seconds=10
                                 way is up, down, both or cross (client to client); size is of IP packets,
                                 several with `/` between them; rate is packets per second in all, and
                                 without it `window` packets are under way at a time; pings per second
                                 of all, and of a bystander: one more client, which does nothing else
  stall:clients=1,...            the same, while the first of the active clients do not read

Exit codes: 0 success, 1 failure, or something came back that should not have, 2 usage, 77 no permission.";

/// Plays many clients against a server, measures it, and checks what comes back
#[derive(Clone, Debug, Parser)]
#[command(name = "lostlove-load", version, after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// What to do, step by step; `storm` comes first by itself
    #[arg(value_name = "STEP[:KEY=VALUE,..]")]
    pub(crate) steps: Vec<String>,
    /// How many clients to play
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    pub(crate) clients: usize,
    /// How many clients the server's configuration has; as many as are played by default
    #[arg(long, value_name = "N")]
    pub(crate) peers: Option<usize>,
    /// Where the server's program is; beside this one by default
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// The server's program
    #[arg(long, value_name = "NAME", default_value = "lostlove-server")]
    pub(crate) program: String,
    /// A key of the server's configuration and its value in TOML, such as limits.max_handshakes=1024
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<Setting>,
    /// Write the server's configuration to a new place and do nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) write_config: Option<PathBuf>,
    /// Start no server, but use one that runs with the configuration of --write-config, in this
    /// network namespace
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = ["bin_dir", "program", "set", "pin"])]
    pub(crate) server: Option<SocketAddr>,
    /// The process whose CPU time and memory are the server's
    #[arg(long, value_name = "PID", requires = "server")]
    pub(crate) server_pid: Option<u32>,
    /// Keep the server on the first CPU and this program on the second
    #[arg(long)]
    pub(crate) pin: bool,
    /// Cipher suite of the clients; whichever the server prefers by default
    #[arg(long)]
    pub(crate) suite: Option<Suite>,
    /// MTU of the tunnel in bytes, 1280 to 9000
    #[arg(long, value_name = "BYTES", default_value_t = 1400)]
    #[arg(value_parser = clap::value_parser!(u16).range(i64::from(MIN_IPV6_MTU)..=i64::from(MAX_MTU)))]
    pub(crate) mtu: u16,
    /// What all keys are made from; they protect nothing
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the tables to a file, as Markdown
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write the curves to a file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Keep the server's log
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    pub(crate) log: Option<PathBuf>,
    /// Say nothing until the end
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl Options {
    /// The steps and their names, with `storm` in front.
    ///
    /// # Errors
    ///
    /// What makes no sense.
    pub(crate) fn plan(&self) -> Result<Vec<(String, Step)>, String> {
        if !(1..=MAX_CLIENTS).contains(&self.clients) {
            return Err(format!("--clients is 1 to {MAX_CLIENTS}"));
        }
        if !(self.clients..=MAX_CLIENTS).contains(&self.peers()) {
            return Err(format!(
                "--peers is as many as --clients or more, up to {MAX_CLIENTS}"
            ));
        }
        let mut plan = Vec::new();
        for text in &self.steps {
            let step: Step = text.parse()?;
            if matches!(step, Step::Storm { .. }) != plan.is_empty() && !plan.is_empty() {
                return Err("storm comes once, and first".to_owned());
            }
            if plan.is_empty() && !matches!(step, Step::Storm { .. }) {
                plan.push(("storm".to_owned(), "storm".parse()?));
            }
            self.judge(&step)?;
            plan.push((text.clone(), step));
        }
        if plan.is_empty() {
            plan.push(("storm".to_owned(), "storm".parse()?));
        }
        Ok(plan)
    }

    fn judge(&self, step: &Step) -> Result<(), String> {
        let Step::Traffic { mix, stalled } = step else {
            return Ok(());
        };
        if let Some(size) = mix.sizes.iter().find(|size| **size > usize::from(self.mtu)) {
            return Err(format!("size {size} is more than --mtu {}", self.mtu));
        }
        let active = mix.active.unwrap_or(self.clients);
        if active > self.clients {
            return Err(format!(
                "active={active} is more than --clients {}",
                self.clients
            ));
        }
        if *stalled >= active {
            return Err(format!(
                "of {active} active clients {stalled} do not read: one has to"
            ));
        }
        if mix.direction == Direction::Cross && active % 2 == 1 {
            return Err("way=cross needs an even number of clients: they are pairs".to_owned());
        }
        Ok(())
    }

    /// How many clients the server's configuration has.
    pub(crate) fn peers(&self) -> usize {
        self.peers.unwrap_or(self.clients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str]) -> Result<Vec<String>, String> {
        let args = ["lostlove-load"].iter().chain(args);
        let options = Options::try_parse_from(args).map_err(|error| error.to_string())?;
        let plan = options.plan()?;
        Ok(plan.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn a_storm_comes_first_and_once() {
        assert_eq!(plan(&[]), Ok(vec!["storm".to_owned()]));
        assert_eq!(
            plan(&["hold", "restart"]).unwrap(),
            ["storm", "hold", "restart"]
        );
        assert_eq!(
            plan(&["storm:rate=5", "hold"]).unwrap(),
            ["storm:rate=5", "hold"]
        );
        assert!(plan(&["hold", "storm"]).is_err());
        assert!(plan(&["storm", "storm"]).is_err());
    }

    #[test]
    fn what_cannot_be_played_is_refused() {
        for (args, words) in [
            (&["--clients", "0"][..], "--clients is 1 to"),
            (
                &["--clients=5", "--peers=4"],
                "--peers is as many as --clients",
            ),
            (&["traffic:size=1401"], "size 1401 is more than --mtu 1400"),
            (
                &["traffic:active=101"],
                "active=101 is more than --clients 100",
            ),
            (&["-n1", "stall"], "of 1 active clients 1 do not read"),
            (&["-n3", "traffic:way=cross"], "even number"),
            (&["--server", "1.2.3.4:5", "--pin"], "cannot be used with"),
            (&["--set", "mtu=5"], "is not SECTION.KEY=VALUE"),
            (&["--mtu=1000"], "1280"),
        ] {
            let error = plan(args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
}
