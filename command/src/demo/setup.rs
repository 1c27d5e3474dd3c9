//! The demo's two namespaces, keys, configurations and daemons.
//!
//! ```text
//!   client namespace                             server namespace
//!   tun 10.8.0.2, fd00:6c:6c::2                  tun 10.8.0.1, fd00:6c:6c::1
//!   wire 192.0.2.2/30  ------- veth pair ------- wire 192.0.2.1/30
//! ```

use std::env;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lostlove_core::crypto::{SecretKey, Suite};
use lostlove_system::netns::Netns;
use lostlove_system::tun::{Offloads, Tun, TunConfig};

use super::Error;
use super::daemon::Daemon;
use lostlove_host::setup;

/// The server's and the client's tunnel addresses.
pub(super) const SERVER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 8, 0, 1));
pub(super) const SERVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6c, 0x6c, 0, 0, 0, 0, 1));
const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 8, 0, 2));
pub(super) const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6c, 0x6c, 0, 0, 0, 0, 2));

/// The daemons' executables.
pub(super) struct Programs {
    server: PathBuf,
    client: PathBuf,
}

impl Programs {
    /// Those in the directory of the running program.
    pub(super) fn beside_this_one() -> Result<Self, Error> {
        let own = env::current_exe().map_err(Error::setup("finding this program"))?;
        let find = |name| {
            let path = own.with_file_name(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(Error::NoProgram(name))
            }
        };
        Ok(Self {
            server: find("lostlove-server")?,
            client: find("lostlove-client")?,
        })
    }
}

/// Both ends of the demo's tunnel.
pub(super) struct Tunnel {
    pub(super) server: Daemon,
    pub(super) client: Daemon,
    pub(super) server_netns: Netns,
    pub(super) client_netns: Netns,
}

impl Tunnel {
    /// Starts both daemons; the tunnel itself may take a moment longer.
    pub(super) fn start(programs: &Programs, suite: Suite) -> Result<Self, Error> {
        let (server_netns, client_netns) = (Netns::new()?, Netns::new()?);
        server_netns.connect("wire", &client_netns, "wire")?;
        server_netns.ip("address add 192.0.2.1/30 dev wire")?;
        client_netns.ip("address add 192.0.2.2/30 dev wire")?;
        check_tun(&server_netns)?;
        let configs = write_configs(suite).map_err(Error::setup("writing configurations"))?;
        let start = |program, netns, config| {
            Daemon::start(program, netns, config).map_err(Error::setup("starting a daemon"))
        };
        Ok(Self {
            server: start(&programs.server, &server_netns, &configs.server)?,
            client: start(&programs.client, &client_netns, &configs.client)?,
            server_netns,
            client_netns,
        })
    }

    /// Stops both daemons, the client first; whether both ended well.
    pub(super) fn stop(mut self) -> bool {
        let client = self.client.stop(STOP_TIMEOUT);
        let server = self.server.stop(STOP_TIMEOUT);
        client && server
    }

    /// What both daemons have logged.
    pub(super) fn logs(&self) -> String {
        let (server, client) = (self.server.log(), self.client.log());
        format!("--- server ---\n{server}--- client ---\n{client}")
    }
}

/// Tells what would keep the daemons from their devices, in the words and with the exit code that
/// they have for it.
fn check_tun(netns: &Netns) -> Result<(), Error> {
    let config = TunConfig {
        name: "lostlove0",
        offload: Offloads::NONE,
    };
    netns.run(|| Tun::open(&config).map(drop))??;
    Ok(())
}

struct Configs {
    server: PathBuf,
    client: PathBuf,
}

fn write_configs(suite: Suite) -> io::Result<Configs> {
    let dir = Path::new("/run/lostlove-demo");
    DirBuilder::new().mode(0o700).create(dir)?;
    let (server_key, client_key) = (fresh_key()?, fresh_key()?);
    write_secret(&dir.join("server.key"), &server_key.to_base64())?;
    write_secret(&dir.join("client.key"), &client_key.to_base64())?;
    let configs = Configs {
        server: dir.join("server.toml"),
        client: dir.join("client.toml"),
    };
    let client_public = client_key.public_key();
    write_secret(
        &configs.server,
        &format!(
            r#"[server]
bind_address = "192.0.2.1"
port = 8443
[network]
tun_name = "lostlove0"
tun_address = "{SERVER_V4}/24"
tun_address_v6 = "{SERVER_V6}/64"
enable_ipv6 = true
nat = false
[security]
private_key_file = "/run/lostlove-demo/server.key"
suites = ["{suite}"]
[monitoring]
enable_metrics = false
[[peers]]
name = "demo"
public_key = "{client_public}"
address = "{CLIENT_V4}"
address_v6 = "{CLIENT_V6}"
"#
        ),
    )?;
    let server_public = server_key.public_key();
    write_secret(
        &configs.client,
        &format!(
            r#"[client]
server = "192.0.2.1:8443"
server_public_key = "{server_public}"
private_key_file = "/run/lostlove-demo/client.key"
routes = "none"
[network]
tun_name = "lostlove0"
[security]
suites = ["{suite}"]
"#
        ),
    )?;
    Ok(configs)
}

fn fresh_key() -> io::Result<SecretKey> {
    let bytes = setup::random().map_err(io::Error::other)?;
    Ok(SecretKey::from_bytes(*bytes))
}

fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{secret}")
}

/// A daemon drains its queues for two seconds at most when it is asked to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
