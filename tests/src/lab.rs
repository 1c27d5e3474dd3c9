//! The machines of a test: namespaces, wires, addresses, keys, files.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{PipeReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lostlove_command::demo::ping::Pinger;
use lostlove_core::crypto::SecretKey;
use lostlove_system::netns::Netns;
use tempfile::TempDir;

use crate::{Daemon, Driver, Settings, await_some, await_true, skip};

/// The tunnel address of the server.
pub const SERVER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 8, 0, 1));
/// The tunnel address of the server.
pub const SERVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6c, 0x6c, 0, 0, 0, 0, 1));
/// The internet's only other machine.
pub const INTERNET_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));
/// The internet's only other machine.
pub const INTERNET_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 2));
/// The tunnel device on every host.
pub const DEVICE: &str = "lostlove0";
/// Where servers listen.
pub const PORT: u16 = 8443;
const METRICS_PORT: u16 = 9100;

/// The tunnel address of client number `index`.
pub const fn client_v4(index: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 8, 0, 2 + index))
}

/// The tunnel address of client number `index`.
pub const fn client_v6(index: u8) -> IpAddr {
    let last = 2 + index as u16;
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6c, 0x6c, 0, 0, 0, 0, last))
}

/// The server's address on the wire to client number `index`.
pub const fn wire_v4(index: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 99, index, 1))
}

/// A test's server, clients and internet.
pub struct Lab {
    /// Where the server runs.
    pub server: Host,
    /// Where the clients run.
    pub clients: Vec<Host>,
    /// A machine behind the server that knows nothing of the tunnel.
    pub internet: Host,
    _dir: TempDir,
}

impl Lab {
    /// Makes the hosts and the wires between them, or says why the test is skipped.
    pub fn new(clients: u8) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("needs root");
            return None;
        }
        let dir = TempDir::with_prefix(format!("lostlove-{}-", std::process::id())).unwrap();
        let lab = Self {
            server: Host::new("server", dir.path()),
            clients: (0..clients)
                .map(|index| Host::new(&format!("client{index}"), dir.path()))
                .collect(),
            internet: Host::new("internet", dir.path()),
            _dir: dir,
        };
        for (index, client) in lab.clients.iter().enumerate() {
            let wire = format!("wire{index}");
            lab.server
                .netns
                .connect(&wire, &client.netns, "wire")
                .unwrap();
            for (host, device, last) in [(&lab.server, wire.as_str(), 1), (client, "wire", 2)] {
                host.add_address(&format!("10.99.{index}.{last}/24"), device);
                host.add_address(&format!("2001:db8:{index}::{last}/64"), device);
            }
        }
        lab.server
            .netns
            .connect("wan", &lab.internet.netns, "wan")
            .unwrap();
        for (host, last) in [(&lab.server, 1), (&lab.internet, 2)] {
            host.add_address(&format!("203.0.113.{last}/24"), "wan");
            host.add_address(&format!("2001:db8:ff::{last}/64"), "wan");
        }
        Some(lab)
    }

    /// A server that knows all clients and gives each its fixed addresses.
    pub fn server_settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings
            .set("server.port", PORT)
            .set("network.tun_name", quoted(DEVICE))
            .set("network.tun_address", quoted("10.8.0.1/24"))
            .set("network.tun_address_v6", quoted("fd00:6c:6c::1/64"))
            .set("network.enable_ipv6", true)
            .set(
                "security.private_key_file",
                quoted(self.server.key_file().display()),
            )
            .set("monitoring.enable_metrics", true)
            .set("monitoring.metrics_port", METRICS_PORT);
        for (index, client) in (0..).zip(&self.clients) {
            let peer = settings.peer(usize::from(index));
            peer.insert("name".into(), quoted(&client.name));
            peer.insert("public_key".into(), quoted(client.key.public_key()));
            peer.insert("address".into(), quoted(client_v4(index)));
            peer.insert("address_v6".into(), quoted(client_v6(index)));
        }
        settings
    }

    /// Client number `index`, with routes to the tunnel's networks.
    pub fn client_settings(&self, index: u8) -> Settings {
        let client = &self.clients[usize::from(index)];
        let server = format!("{}:{PORT}", wire_v4(index));
        let mut settings = Settings::default();
        settings
            .set("client.server", quoted(server))
            .set(
                "client.server_public_key",
                quoted(self.server.key.public_key()),
            )
            .set(
                "client.private_key_file",
                quoted(client.key_file().display()),
            )
            .set("client.routes", quoted("server"))
            .set("network.tun_name", quoted(DEVICE))
            .set("monitoring.enable_metrics", true)
            .set("monitoring.metrics_port", METRICS_PORT);
        settings
    }

    /// Starts the server and waits until it says that it listens: by then its network is set up.
    #[track_caller]
    pub fn start_server(&self, settings: &Settings) -> Daemon {
        let daemon = self.server.start(&Driver::of_server().server(), settings);
        daemon.await_log(" listening ");
        daemon
    }

    /// Starts client number `index`; its session may take a moment longer.
    pub fn start_client(&self, index: u8, settings: &Settings) -> Daemon {
        self.clients[usize::from(index)].start(&Driver::of_client().client(), settings)
    }

    /// Starts the server and every client with the settings above and waits for all tunnels.
    #[track_caller]
    pub fn start(&self) -> Tunnel {
        let server = self.start_server(&self.server_settings());
        let clients = (0..self.clients.len() as u8)
            .map(|index| self.start_client(index, &self.client_settings(index)))
            .collect();
        for client in &self.clients {
            client.await_ping(SERVER_V4);
        }
        Tunnel { server, clients }
    }
}

/// The daemons of a lab.
pub struct Tunnel {
    /// The server.
    pub server: Daemon,
    /// The clients, in the lab's order.
    pub clients: Vec<Daemon>,
}

/// A machine: a network namespace, a private `/run` and `/var/lib`, a key.
pub struct Host {
    /// Unique in its lab.
    pub name: String,
    /// Its network.
    pub netns: Netns,
    /// Its static key.
    pub key: SecretKey,
    dir: PathBuf,
}

impl Host {
    fn new(name: &str, parent: &Path) -> Self {
        let dir = parent.join(name);
        let [run, state] = ["run", "state"].map(|name| dir.join(name));
        for folder in [&run, &state] {
            fs::create_dir_all(folder).unwrap();
        }
        let etc = private_etc(&dir);
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        let host = Self {
            name: name.to_owned(),
            netns: Netns::new()
                .unwrap()
                .bind(&run, Path::new("/run"))
                .bind(&state, Path::new("/var/lib"))
                .bind(&etc, Path::new("/etc")),
            key: SecretKey::from_bytes(key),
            dir,
        };
        host.write_key_file(&host.key);
        host
    }

    /// The file with the private key.
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("private.key")
    }

    /// What its processes see as `/etc`.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// What its processes see as `/run/lostlove`.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run/lostlove")
    }

    /// What its processes see as `/var/lib/lostlove`.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state/lostlove")
    }

    /// What its processes see as `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        fs::read_to_string(self.etc().join("resolv.conf")).unwrap()
    }

    /// Puts a gate before a program of the system, for the processes started here from now on.
    pub fn gate(&mut self, program: &str) -> Gate {
        let real = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(program));
        let real = real.iter().find(|path| path.is_file()).unwrap();
        let [held, waits, ran, copy, script] = ["held", "waits", "ran", "copy", "script"]
            .map(|name| self.dir.join(format!("{program}-{name}")));
        fs::copy(real, &copy).unwrap();
        let text = format!(
            "#!/bin/sh\n\
             [ -e {held} ] && : > {waits}\n\
             while [ -e {held} ]; do sleep 0.02; done\n\
             echo \"$@\" >> {ran}\n\
             exec {copy} \"$@\"\n",
            held = held.display(),
            waits = waits.display(),
            ran = ran.display(),
            copy = copy.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        self.netns = self.netns.clone().bind(&script, real);
        Gate {
            held,
            waits,
            ran,
            copy,
        }
    }

    /// Puts another key into the file with the private key.
    pub fn write_key_file(&self, key: &SecretKey) {
        write_secret(&self.key_file(), &key.to_base64());
    }

    /// Writes a configuration file and returns its path.
    pub fn write_settings(&self, settings: &Settings) -> PathBuf {
        let path = self.dir.join("config.toml");
        write_secret(&path, &settings.to_string());
        path
    }

    /// Starts a daemon here.
    pub fn start(&self, program: &Path, settings: &Settings) -> Daemon {
        let config = self.write_settings(settings);
        Daemon::start(&self.name, program, &self.netns, &config)
    }

    /// Starts a daemon here whose log nobody reads, until somebody reads what is returned.
    pub fn start_unread(&self, program: &Path, settings: &Settings) -> (Daemon, PipeReader) {
        let mut command = self.netns.command(program);
        command.arg("--config").arg(self.write_settings(settings));
        Daemon::spawn_unread(&self.name, command)
    }

    /// Runs a program here to its end; `arguments` are separated by white space.
    pub fn output(&self, program: &str, arguments: &str) -> Output {
        let mut command = self.netns.command(program);
        command.args(arguments.split_whitespace()).output().unwrap()
    }

    /// The standard output of a program run here.
    pub fn text(&self, program: &str, arguments: &str) -> String {
        String::from_utf8(self.output(program, arguments).stdout).unwrap()
    }

    /// Adds an address, usable at once, to a device.
    pub fn add_address(&self, address: &str, device: &str) {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        let arguments = format!("address add {address} dev {device} {nodad}");
        self.netns.ip(&arguments).unwrap();
    }

    /// Pings until there is an answer.
    #[track_caller]
    pub fn await_ping(&self, address: IpAddr) {
        let timeout = Duration::from_millis(200);
        let what = format!("{}: answer from {address}", self.name);
        await_true(&what, || {
            let ping = || Pinger::new(address)?.ping(timeout);
            // Without an address or a route yet, sending fails.
            matches!(self.netns.run(ping).unwrap(), Ok(Some(_)))
        });
    }

    /// Pings through a device, whatever the routes say, until there is an answer.
    #[track_caller]
    pub fn await_ping_on_device(&self, address: IpAddr, device: &str) {
        let what = format!("{}: answer from {address} through {device}", self.name);
        await_true(&what, || {
            self.ping(&format!("-W 0.2 -I {device} {address}"))
        });
    }

    /// Whether `ping` with these arguments gets an answer to one request within two seconds.
    pub fn ping(&self, arguments: &str) -> bool {
        let arguments = format!("-n -c 1 -W 2 {arguments}");
        self.output("ping", &arguments).status.success()
    }

    /// What the daemon's HTTP port answers to `GET path`, headers included.
    pub fn http(&self, path: &str) -> String {
        let mut text = String::new();
        let get = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )?;
            stream.read_to_string(&mut text)
        };
        self.netns.run(get).unwrap().unwrap();
        text
    }

    /// The value of a metric, written with its labels; none if there is no such line.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.http("/metrics");
        let line = text.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        })?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until a metric is at least `value`.
    #[track_caller]
    pub fn await_metric(&self, name: &str, value: f64) {
        await_some(&format!("{}: {name} >= {value}", self.name), || {
            self.metric(name).filter(|found| *found >= value)
        });
    }

    /// Everything of the network that a daemon might change, line by line: links, addresses,
    /// routes, policy rules, firewall, sysctls, DNS.
    pub fn network_state(&self) -> NetworkState {
        let mut lines = BTreeSet::new();
        let mut add = |what: &str, text: &str| {
            // The kernel makes link-local addresses whenever it sees fit.
            let stable = text.lines().filter(|line| !line.contains("fe80:"));
            lines.extend(stable.map(|line| format!("{what}: {line}")));
        };
        for (program, arguments) in [
            ("ip", "-o link show"),
            ("ip", "-o address show"),
            ("ip", "route show table all"),
            ("ip", "-6 route show table all"),
            ("ip", "rule show"),
            ("ip", "-6 rule show"),
            ("nft", "-s list ruleset"),
        ] {
            add(arguments, &self.text(program, arguments));
        }
        let sysctls = || SYSCTLS.map(|path| fs::read_to_string(path).unwrap_or_default());
        for (path, value) in SYSCTLS.iter().zip(self.netns.run(sysctls).unwrap()) {
            add(path, &value);
        }
        add("resolv.conf", &self.resolv_conf());
        NetworkState(lines)
    }
}

/// Before a program: while it is held, who starts the program waits.
#[derive(Debug)]
pub struct Gate {
    held: PathBuf,
    waits: PathBuf,
    ran: PathBuf,
    copy: PathBuf,
}

impl Gate {
    /// The program itself, past the gate.
    pub fn program(&self) -> PathBuf {
        self.copy.clone()
    }

    /// Stops the program whenever it is started.
    pub fn hold(&self) {
        fs::write(&self.held, "").unwrap();
    }

    /// Waits until somebody has started the program in vain.
    #[track_caller]
    pub fn await_start(&self) {
        await_true("start of a program", || self.waits.exists());
    }

    /// Waits until the program has been let through with each of these arguments.
    #[track_caller]
    pub fn await_runs(&self, all: &[String]) {
        await_true(&format!("runs with {all:?}"), || {
            let ran = fs::read_to_string(&self.ran).unwrap_or_default();
            all.iter().all(|it| ran.lines().any(|line| line == it))
        });
    }

    /// Lets the program go on.
    pub fn open(&self) {
        fs::remove_file(&self.held).unwrap();
        // Nobody may have come.
        let _ = fs::remove_file(&self.waits);
    }
}

/// The state of a host's network at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct NetworkState(BTreeSet<String>);

impl NetworkState {
    /// Fails with the lines that came or went since `before`.
    #[track_caller]
    pub fn assert_same_as(&self, before: &Self) {
        let changes = self.changes_since(before);
        assert!(changes.is_empty(), "not restored:\n{}", changes.join("\n"));
    }

    /// The lines that came or went since `before`.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let gone = before.0.difference(&self.0).map(|line| format!("- {line}"));
        let new = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }
}

const SYSCTLS: [&str; 6] = [
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/all/forwarding",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv4/conf/all/src_valid_mark",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/sys/net/ipv6/conf/wan/accept_ra",
];

/// Makes a small `/etc`, so that commands neither see nor change the machine's own.
fn private_etc(dir: &Path) -> PathBuf {
    let etc = dir.join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
    for name in [
        "alternatives",
        "group",
        "hosts",
        "ld.so.cache",
        "nsswitch.conf",
        "passwd",
    ] {
        let source = Path::new("/etc").join(name);
        if source.exists() {
            let copied = Command::new("cp").arg("-a").arg(&source).arg(&etc).status();
            assert!(copied.unwrap().success(), "copying {}", source.display());
        }
    }
    etc
}

/// Writes a file with mode 0600.
pub fn write_secret(path: &Path, text: &str) {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A TOML string.
pub fn quoted(value: impl Display) -> String {
    format!("\"{value}\"")
}
