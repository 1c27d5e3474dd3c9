//! The chains that others have installed, as `nft` and `iptables-legacy` list them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ipnet::IpNet;

use super::super::command;
use super::super::error::NetError;
use super::super::setup::Paths;
use super::OWN_TABLES;

/// Which packets a chain sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Packets {
    V4,
    V6,
    Both,
}

impl Packets {
    /// Whether packets of this version of IP are among them.
    pub(in crate::net) fn include(self, v6: bool) -> bool {
        match self {
            Self::V4 => !v6,
            Self::V6 => v6,
            Self::Both => true,
        }
    }
}

/// A chain of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::net) struct Chain {
    pub(in crate::net) packets: Packets,
    /// Family and name as `nft` has them, or `iptables-legacy filter`.
    pub(in crate::net) table: String,
    pub(in crate::net) name: String,
    /// What the kernel calls it for; none for a chain that others jump to.
    pub(in crate::net) base: Option<Base>,
    pub(in crate::net) rules: Vec<String>,
}

/// What makes the kernel call a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::net) struct Base {
    /// `filter`, `nat` or `route`.
    pub(in crate::net) kind: String,
    /// `forward`, `postrouting` and so on.
    pub(in crate::net) hook: String,
    /// Whether what no rule decides about is dropped.
    pub(in crate::net) drops: bool,
}

/// All chains of others, those of `iptables-legacy` among them as far as it can be asked.
///
/// # Errors
///
/// What `nft` says. Legacy tables that cannot be listed are left out.
pub(in crate::net) fn of_others(paths: &Paths) -> Result<Vec<Chain>, NetError> {
    let listing = match super::run(paths, &["-s", "-t", "list", "ruleset"], "") {
        Ok(listing) => listing,
        // Before 0.9.1 sets cannot be left out.
        Err(NetError::Command { .. }) => super::run(paths, &["-s", "list", "ruleset"], "")?,
        Err(error) => return Err(error),
    };
    let mut chains = parse(&listing);
    for (family, program) in [
        ("ip", &paths.iptables_legacy),
        ("ip6", &paths.ip6tables_legacy),
    ] {
        for table in legacy_tables(family) {
            match list_legacy(paths, program, &table) {
                Ok(listing) => chains.extend(parse_legacy(family, &table, &listing)),
                Err(error) => tracing::debug!(%error, table, "cannot list iptables-legacy's rules"),
            }
        }
    }
    Ok(chains)
}

/// Whether there are tables that only `iptables-legacy` lists, and of whose changes nobody is told.
pub(in crate::net) fn has_legacy_tables() -> bool {
    ["ip", "ip6"]
        .into_iter()
        .any(|family| !legacy_tables(family).is_empty())
}

/// The tables in use, which are made by the first who asks for them: so nobody is asked before.
fn legacy_tables(family: &str) -> Vec<String> {
    let names = format!("/proc/thread-self/net/{family}_tables_names");
    // There is none without that module.
    let names = fs::read_to_string(names).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

fn list_legacy(paths: &Paths, program: &Path, table: &str) -> Result<String, NetError> {
    let Some(program) = command::find(program) else {
        return Ok(String::new());
    };
    command::run(&program, &["-t", table, "-S"], "", &paths.patience)
}

/// The chains of a listing of `nft`, but for those of LostLove.
fn parse(listing: &str) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut table = None;
    let mut open: Option<Chain> = None;
    // A rule with a long set takes several lines.
    let mut rule = String::new();
    for line in listing.lines().map(str::trim) {
        let Some(chain) = &mut open else {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["table", family, name, "{"] => table = Some((family, name)),
                ["chain", name, "{"] => open = table.and_then(|table| chain_of(table, name)),
                _ => {}
            }
            continue;
        };
        if rule.is_empty() && line == "}" {
            chains.extend(open.take());
            continue;
        }
        rule.push_str(line);
        if is_complete(&rule) {
            chain.add(std::mem::take(&mut rule));
        } else {
            rule.push(' ');
        }
    }
    chains
}

fn chain_of((family, table): (&str, &str), name: &str) -> Option<Chain> {
    let packets = match family {
        "ip" => Packets::V4,
        "ip6" => Packets::V6,
        "inet" => Packets::Both,
        _ => return None,
    };
    (!table.starts_with(OWN_TABLES)).then(|| Chain {
        packets,
        table: format!("{family} {table}"),
        name: name.to_owned(),
        base: None,
        rules: Vec::new(),
    })
}

/// Whether every brace outside of quotes is closed.
fn is_complete(rule: &str) -> bool {
    let outside = rule.split('"').step_by(2);
    let (mut opened, mut closed) = (0, 0);
    for part in outside {
        opened += part.matches('{').count();
        closed += part.matches('}').count();
    }
    opened == closed
}

/// The chains of a listing of `iptables-legacy -S`.
fn parse_legacy(family: &str, table: &str, listing: &str) -> Vec<Chain> {
    let program = if family == "ip6" {
        "ip6tables-legacy"
    } else {
        "iptables-legacy"
    };
    let mut chains: Vec<Chain> = Vec::new();
    for line in listing.lines() {
        let Some((what, rest)) = line.split_once(' ') else {
            continue;
        };
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        if let "-P" | "-N" = what {
            chains.push(Chain {
                packets: if family == "ip6" {
                    Packets::V6
                } else {
                    Packets::V4
                },
                table: format!("{program} {table}"),
                name: name.to_owned(),
                base: (what == "-P").then(|| Base {
                    kind: if table == "nat" { "nat" } else { "filter" }.to_owned(),
                    hook: name.to_lowercase(),
                    drops: rest == "DROP",
                }),
                rules: Vec::new(),
            });
        } else if let Some(chain) = chains.iter_mut().find(|chain| chain.name == name) {
            chain.rules.push(rest.to_owned());
        }
    }
    chains
}

impl Chain {
    fn add(&mut self, line: String) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["type", kind, "hook", hook, ..] = words[..] {
            self.base = Some(Base {
                kind: kind.to_owned(),
                hook: hook.trim_end_matches(';').to_owned(),
                drops: line.contains("policy drop"),
            });
        } else {
            self.rules.push(line);
        }
    }

    /// Whether the kernel calls it for packets that it forwards.
    pub(in crate::net) fn forwards(&self) -> bool {
        self.base
            .as_ref()
            .is_some_and(|base| base.hook == "forward" && base.kind == "filter")
    }

    /// Whether the last rule drops or rejects whatever comes that far.
    pub(in crate::net) fn refuses_the_rest(&self) -> bool {
        self.rules.last().is_some_and(|rule| is_refusal(rule))
    }
}

/// Whether a rule drops or rejects every packet.
fn is_refusal(rule: &str) -> bool {
    // What stands in quotes is a comment or a log's prefix.
    let outside: String = rule.split('"').step_by(2).collect();
    let mut words: Vec<_> = outside.split_whitespace().collect();
    if words.ends_with(&["comment"]) {
        words.pop();
    }
    match words[..] {
        ["counter", "packets", _, "bytes", _, ..] => drop(words.drain(..5)),
        ["counter", ..] => drop(words.drain(..1)),
        _ => {}
    }
    match words[..] {
        // As iptables writes it.
        ["-j", "DROP" | "REJECT", ..] | ["drop" | "reject", ..] => true,
        ["log", ..] => words.contains(&"reject") || words.ends_with(&["drop"]),
        // Where nft cannot translate what iptables has made.
        ["xt", "target", ..] => rule.contains("\"REJECT\"") || rule.contains("\"DROP\""),
        _ => false,
    }
}

/// The words of a rule, without what holds them together.
pub(in crate::net) fn words(rule: &str) -> impl Iterator<Item = &str> {
    let is_around = |c: char| matches!(c, '"' | '{' | '}' | ',' | ';');
    let words = rule.split_whitespace();
    words
        .map(move |word| word.trim_matches(is_around))
        .filter(|word| !word.is_empty())
}

/// The rules that a packet in `base` may come to, with those of the chains that others lead to.
pub(in crate::net) fn reachable<'a>(chains: &'a [Chain], base: &'a Chain) -> Vec<&'a str> {
    let mut rules = Vec::new();
    let mut known = BTreeSet::from([base.name.as_str()]);
    let mut pending = vec![base];
    while let Some(chain) = pending.pop() {
        for rule in &chain.rules {
            rules.push(rule.as_str());
            for name in targets(rule).filter(|name| known.insert(name)) {
                let is_meant = |it: &&Chain| it.table == base.table && it.name == name;
                pending.extend(chains.iter().find(is_meant));
            }
        }
    }
    rules
}

/// The chains that a rule leads to.
fn targets(rule: &str) -> impl Iterator<Item = &str> {
    let pairs = words(rule).zip(words(rule).skip(1));
    let leads = |word: &str| matches!(word, "jump" | "goto" | "-j" | "-g");
    pairs
        .filter(move |(word, _)| leads(word))
        .map(|(_, target)| target)
}

/// Whether a rule names the device, by a pattern or by itself, or addresses of its networks.
pub(in crate::net) fn names(rule: &str, tun: &str, networks: &[IpNet]) -> bool {
    words(rule).any(|word| {
        let by_pattern = || {
            word.strip_suffix(['*', '+'])
                .is_some_and(|it| tun.starts_with(it))
        };
        word == tun || by_pattern() || is_inside(word, networks)
    })
}

/// Whether a word is an address, a network, or an address and a port, within one of `networks`.
fn is_inside(word: &str, networks: &[IpNet]) -> bool {
    let network = word.parse::<IpNet>().ok();
    let address = || {
        word.parse()
            .or_else(|_| word.parse().map(|it: std::net::SocketAddr| it.ip()))
    };
    let network = network.or_else(|| address().ok().map(IpNet::from));
    network.is_some_and(|it| networks.iter().any(|known| known.trunc().contains(&it)))
}

#[cfg(test)]
mod tests;
