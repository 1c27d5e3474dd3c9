//! The client's file.

use std::path::Path;
use std::time::Duration;

use lostlove_core::config::{Client, ClientConfig, Common, Role};
use lostlove_core::crypto::SecretKey;
use toml::de::DeValue;

use crate::peers::required;
use crate::problem::ConfigError;
use crate::reader::secret::{PRESHARED_KEY, PRIVATE_KEY};
use crate::reader::value::{boolean, expected, host_address, nearest, parsed, public_key, route};
use crate::reader::{Entry, Found, Reader, Section};
use crate::sections::{self, MTU, MonitoringDefaults, seconds, values};
use crate::server_address::ServerAddress;
use crate::settings::{ClientHost, ClientSettings, Dns, Routes, TunOptions};
use crate::source::{Source, read_config};

const RECONNECT_MIN: Duration = Duration::from_secs(1);
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Much less than a server's: someone waits here. Three missed answers to keepalives.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(75);
const MAX_RECONNECT_SECONDS: u64 = 3600;

/// Another port than the server's: both may run on one machine.
const MONITORING: MonitoringDefaults = MonitoringDefaults {
    enable_metrics: false,
    metrics_port: 9191,
};

/// Reads and judges a client's file and the key files it names. Touches nothing else.
///
/// # Errors
///
/// If the file cannot be read, or with everything that is wrong with it.
pub fn load_client(path: &Path) -> Result<ClientSettings, ConfigError> {
    let (text, mode) = read_config(path)?;
    let source = Source::new(path, &text, mode);
    read(&source)
}

/// Whose configuration a file is, as far as its sections tell: where none does, it is a server's, which
/// can do without any.
///
/// # Errors
///
/// If the file cannot be read, or is no TOML.
pub fn role_of(path: &Path) -> Result<Role, ConfigError> {
    let (text, mode) = read_config(path)?;
    let source = Source::new(path, &text, mode);
    let tree = source.parse()?;
    let has = |name: &str| tree.get_ref().iter().any(|(key, _)| key.get_ref() == name);
    let is_client = has("client") && !["server", "peers"].into_iter().any(has);
    Ok(if is_client {
        Role::Client
    } else {
        Role::Server
    })
}

pub(crate) fn read(source: &Source<'_>) -> Result<ClientSettings, ConfigError> {
    let tree = source.parse()?;
    let mut reader = Reader::new(source);
    let root = reader.root(tree.get_ref());
    refuse_servers_file(&reader, &root)?;
    let settings = settings(&mut reader, &root);
    let (mut settings, warnings) = reader.finish(settings)?;
    settings.warnings = warnings;
    Ok(settings)
}

/// A server's configuration is a file of another kind, and what it lacks here says nothing.
fn refuse_servers_file<'t>(reader: &Reader<'t>, root: &Section<'t>) -> Result<(), ConfigError> {
    if reader.place_of(root, "client").is_some() {
        return Ok(());
    }
    let foreign = ["server", "peers"];
    let first = foreign.iter().find_map(|name| reader.place_of(root, name));
    match first {
        Some(at) => Err(reader.refuse(
            &at,
            "this is a server's configuration; expected a client's profile, which \
             `lostlove peer add NAME --output NAME.toml` makes on the server",
        )),
        None => Ok(()),
    }
}

/// The settings, without their warnings; or nothing but problems.
pub(crate) fn settings<'t>(reader: &mut Reader<'t>, root: &Section<'t>) -> Option<ClientSettings> {
    let client = reader.section(root, "client");
    let network = reader.section(root, "network");
    let limits = reader.section(root, "limits");
    let security = reader.section(root, "security");
    let device = sections::device(reader, &network);
    let routes = routes(reader, &client);
    let host = ClientHost {
        server: servers(reader, &client),
        tun: TunOptions {
            name: device.name,
            mtu: device.mtu.or(MTU),
            addresses: Vec::new(),
            offload: device.offload,
        },
        inbound: switch(reader, &client, "inbound"),
        direct_replies: switch(reader, &client, "direct_replies"),
        dns: dns(reader, &client, &routes),
        routes,
        monitoring: sections::monitoring(reader, root, &MONITORING, &[]),
        socket: device.socket,
    };
    let own = own(reader, &client, &network);
    let common = Common {
        suites: sections::suites(reader, &security),
        rotation: sections::rotation(reader, &security),
        limits: sections::limits(reader, &limits, CONNECTION_TIMEOUT),
        mtu: host.tun.mtu,
        compression: device.compression,
    };
    Some(ClientSettings {
        endpoint: ClientConfig {
            common,
            client: own?,
        },
        host,
        warnings: Vec::new(),
    })
}

/// What only a client has.
fn own<'t>(reader: &mut Reader<'t>, client: &Section<'t>, network: &Section<'t>) -> Option<Client> {
    let server_key = reader.read(client, "server_public_key", public_key);
    let server_key = required(
        reader,
        &client.missing("server_public_key"),
        "a public key",
        server_key,
    );
    let secret_key = reader.secret::<SecretKey>(client, &PRIVATE_KEY);
    let secret_key = required(
        reader,
        &client.missing(PRIVATE_KEY.inline),
        "private_key or private_key_file",
        secret_key,
    );
    if let (Some(server), Some(own)) = (&server_key, &secret_key)
        && own.value.public_key() == server.value
    {
        let message = "expected the server's public key, found this client's own";
        reader.problem(&server.at, message);
    }
    let preshared_key = reader.secret(client, &PRESHARED_KEY);
    let routes = values(reader.list(network, "local_routes", route));
    let range = 1..=MAX_RECONNECT_SECONDS;
    let min = seconds(reader, client, "reconnect_min", range.clone());
    let max = seconds(reader, client, "reconnect_max", range);
    let (min, max) = waits(reader, min, max);
    Some(Client {
        secret_key: secret_key?.value,
        server_key: server_key?.value,
        preshared_key: preshared_key.given().map(|found| found.value),
        routes,
        reconnect_min: min,
        reconnect_max: max,
    })
}

/// One wait alone moves the other's default along.
fn waits(
    reader: &mut Reader<'_>,
    min: Entry<Duration>,
    max: Entry<Duration>,
) -> (Duration, Duration) {
    match (min, max) {
        (Entry::Given(min), Entry::Given(max)) => {
            if max.value < min.value {
                let (least, found) = (min.value.as_secs(), max.value.as_secs());
                let message = format!("expected at least reconnect_min ({least}), found {found}");
                reader.problem(&max.at, message);
            }
            (min.value, max.value)
        }
        (Entry::Given(min), _) => (min.value, RECONNECT_MAX.max(min.value)),
        (_, Entry::Given(max)) => (RECONNECT_MIN.min(max.value), max.value),
        (_, _) => (RECONNECT_MIN, RECONNECT_MAX),
    }
}

/// One server or a list of them.
fn servers<'t>(reader: &mut Reader<'t>, client: &Section<'t>) -> Vec<ServerAddress> {
    const KEY: &str = "server";
    const SERVER: &str = "a server such as \"vpn.example.org:8443\"";
    let endpoint = parsed::<ServerAddress>(SERVER);
    match reader.read(client, KEY, |value| Ok(value.is_array())) {
        Entry::Given(Found { value: true, at }) => {
            let list = reader.list(client, KEY, endpoint);
            if matches!(&list, Entry::Given(list) if list.value.is_empty()) {
                reader.problem(&at, "expected at least one server");
            }
            values(list)
        }
        _ => {
            let one = reader.read(client, KEY, endpoint);
            let one = required(reader, &client.missing(KEY), SERVER, one);
            one.map(|found| found.value).into_iter().collect()
        }
    }
}

/// A name, or a list.
enum NameOrList {
    Name(&'static str),
    List,
}

fn name_or_list(
    names: &'static [&'static str],
    list: &'static str,
) -> impl Fn(&DeValue<'_>) -> Result<NameOrList, String> {
    move |value| {
        if value.is_array() {
            return Ok(NameOrList::List);
        }
        let text = value.as_str();
        if let Some(name) = names.iter().find(|name| Some(**name) == text) {
            return Ok(NameOrList::Name(name));
        }
        let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        let what = format!("{} or a list of {list}", quoted.join(", "));
        let message = expected(what, value);
        Err(
            match text.and_then(|text| nearest(text, names.iter().copied())) {
                Some(nearest) => format!("{message}; did you mean {nearest:?}?"),
                None => message,
            },
        )
    }
}

fn routes<'t>(reader: &mut Reader<'t>, client: &Section<'t>) -> Routes {
    let names = &["full", "server", "none"];
    match reader.read(client, "routes", name_or_list(names, "networks")) {
        Entry::Given(Found { value, .. }) => match value {
            NameOrList::Name("full") => Routes::Full,
            NameOrList::Name("none") => Routes::None,
            NameOrList::Name(_) => Routes::Server,
            NameOrList::List => Routes::List(values(reader.list(client, "routes", route))),
        },
        Entry::Absent | Entry::Invalid => Routes::Server,
    }
}

/// Something that is on unless it is switched off.
fn switch<'t>(reader: &mut Reader<'t>, client: &Section<'t>, key: &'static str) -> bool {
    match reader.read(client, key, boolean) {
        Entry::Given(Found { value, .. }) => value,
        Entry::Absent | Entry::Invalid => true,
    }
}

/// Without a word, the server names name servers for a client that it also sends elsewhere; who
/// lists what goes through the tunnel lists the name servers as well.
fn dns<'t>(reader: &mut Reader<'t>, client: &Section<'t>, routes: &Routes) -> Dns {
    let names = &["server", "none"];
    match reader.read(client, "dns", name_or_list(names, "IP addresses")) {
        Entry::Given(Found { value, .. }) => match value {
            NameOrList::Name("none") => Dns::None,
            NameOrList::Name(_) => Dns::Server,
            NameOrList::List => Dns::List(values(reader.list(client, "dns", host_address))),
        },
        Entry::Absent | Entry::Invalid => match routes {
            Routes::Server | Routes::Full => Dns::Server,
            Routes::List(_) | Routes::None => Dns::None,
        },
    }
}
