use std::path::Path;

use super::*;
use crate::net::namespace::{self, turn};

const SERVERS: [&str; 2] = ["10.8.0.1", "fd00::1"];
const ORIGINAL_TEXT: &str = "nameserver 192.0.2.53\n";

/// A folder with a resolver's file, and one for the state.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        Self(directory)
    }

    fn with(text: &str) -> Self {
        let scratch = Self::new();
        fs::write(scratch.path(), text).unwrap();
        scratch
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("etc/resolv.conf")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn client(&self) -> Client {
        Client::new(&self.path(), &self.0.path().join("state"))
    }

    /// The files of the folder.
    fn names(&self) -> Vec<String> {
        names(&self.0.path().join("etc"))
    }

    fn claims(&self) -> usize {
        names(&self.0.path().join("state")).len()
    }
}

/// Somebody who sets name servers.
struct Client {
    path: PathBuf,
    backup: PathBuf,
    state_dir: PathBuf,
    claim: Option<Claim>,
}

impl Client {
    fn new(path: &Path, state_dir: &Path) -> Self {
        let (path, backup) = places(path);
        Self {
            path,
            backup,
            state_dir: state_dir.to_owned(),
            claim: None,
        }
    }

    fn file(&self) -> ResolvConf<'_> {
        ResolvConf::new(&self.path, &self.backup, &self.state_dir)
    }

    fn try_to_set(&mut self, servers: &[&str]) -> Result<(), NetError> {
        let mut claim = self.claim.take();
        let result = self.file().set(&parsed(servers), &mut claim);
        self.claim = claim;
        result
    }

    fn set(&mut self, servers: &[&str]) {
        self.try_to_set(servers).unwrap();
    }

    fn is_set(&self, servers: &[&str]) -> bool {
        let servers = parsed(servers);
        self.file().is_set(&servers, self.claim.as_ref())
    }

    fn stop(&mut self) {
        self.claim = None;
        self.file().restore().unwrap();
    }

    /// Ends as a process that is killed.
    fn kill(self) {}
}

#[test]
fn a_plain_file_is_replaced_and_restored() {
    let _turn = turn();
    let scratch = Scratch::with("search lan\nnameserver 192.0.2.53\n");
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o640)).unwrap();
    let mut client = scratch.client();

    client.set(&SERVERS[..1]);
    client.set(&SERVERS);
    let text = scratch.text();
    assert!(text.starts_with("# Written by LostLove."), "{text}");
    assert!(text.ends_with("\nnameserver 10.8.0.1\nnameserver fd00::1\n"));
    assert!(client.is_set(&SERVERS) && !client.is_set(&SERVERS[..1]));
    client.stop();

    assert_eq!(scratch.text(), "search lan\nnameserver 192.0.2.53\n");
    let mode = fs::metadata(scratch.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(scratch.names(), ["resolv.conf"]);
    assert_eq!(scratch.claims(), 0);
}

#[test]
fn a_link_is_replaced_and_restored_as_a_link() {
    let _turn = turn();
    let scratch = Scratch::new();
    let target = scratch.0.path().join("managed");
    fs::write(&target, ORIGINAL_TEXT).unwrap();
    symlink("../managed", scratch.path()).unwrap();
    let mut client = scratch.client();

    client.set(&SERVERS);
    assert_eq!(fs::read_to_string(&target).unwrap(), ORIGINAL_TEXT);
    client.stop();

    let link = fs::read_link(scratch.path()).unwrap();
    assert_eq!(link, Path::new("../managed"));
    assert_eq!(scratch.names(), ["resolv.conf"]);
}

/// Short names are found, and resolvers asked, as before.
#[test]
fn search_domain_and_options_are_kept() {
    let _turn = turn();
    for is_link in [false, true] {
        let scratch = Scratch::new();
        let target = if is_link {
            symlink("../managed", scratch.path()).unwrap();
            scratch.0.path().join("managed")
        } else {
            scratch.path()
        };
        let original = "# searchers\ndomain lan\n search not\nsearch lan example.org\n\
                        nameserver 192.0.2.53\nsortlist 192.0.2.0\noptions\tndots:2\n";
        fs::write(&target, original).unwrap();
        let mut client = scratch.client();

        client.set(&SERVERS[..1]);
        client.set(&SERVERS);
        let text = scratch.text();
        let (_, text) = text.split_once('\n').unwrap();
        assert_eq!(
            text,
            "domain lan\nsearch lan example.org\noptions\tndots:2\n\
             nameserver 10.8.0.1\nnameserver fd00::1\n"
        );
        client.stop();

        assert_eq!(scratch.text(), original);
    }
}

/// There is one original, whoever ends first, and however.
#[test]
fn the_last_of_those_who_share_the_file_brings_the_original_back() {
    let _turn = turn();
    for is_killed in [[false, false], [true, false], [false, true], [true, true]] {
        for is_first_to_end in [true, false] {
            let scratch = Scratch::with(ORIGINAL_TEXT);
            let (mut first, mut second) = (scratch.client(), scratch.client());
            first.set(&["10.8.0.1"]);
            second.set(&["10.9.0.1"]);
            assert!(scratch.text().ends_with("nameserver 10.9.0.1\n"));
            assert!(first.is_set(&["10.8.0.1"]) && second.is_set(&["10.9.0.1"]));

            let (mut early, mut late, rest) = if is_first_to_end {
                (first, second, "10.9.0.1")
            } else {
                (second, first, "10.8.0.1")
            };
            if is_killed[0] {
                early.kill();
                // As it does at a look.
                if !late.is_set(&[rest]) {
                    late.set(&[rest]);
                }
            } else {
                early.stop();
            }
            let text = scratch.text();
            assert!(text.ends_with(&format!("nameserver {rest}\n")), "{text}");
            assert!(late.is_set(&[rest]));
            if is_killed[1] {
                late.kill();
                late = scratch.client();
            }
            late.stop();

            assert_eq!(scratch.text(), ORIGINAL_TEXT);
            assert_eq!(scratch.names(), ["resolv.conf"]);
            assert_eq!(scratch.claims(), 0);
        }
    }
}

/// What an older client is assigned anew does not make it the newest.
#[test]
fn the_newest_client_stays_in_force() {
    let _turn = turn();
    let scratch = Scratch::with(ORIGINAL_TEXT);
    let (mut first, mut second) = (scratch.client(), scratch.client());
    first.set(&["10.8.0.1"]);
    second.set(&["10.9.0.1"]);
    first.set(&["10.8.0.2"]);
    assert!(scratch.text().ends_with("nameserver 10.9.0.1\n"));
    // A DHCP client's lease is the original from then on, for both.
    let lease = "nameserver 192.0.2.77\n";
    fs::write(scratch.path(), lease).unwrap();
    assert!(!first.is_set(&["10.8.0.2"]) && !second.is_set(&["10.9.0.1"]));
    first.set(&["10.8.0.2"]);
    assert!(second.is_set(&["10.9.0.1"]));
    second.stop();
    assert!(scratch.text().ends_with("nameserver 10.8.0.2\n"));
    first.stop();
    assert_eq!(scratch.text(), lease);
}

#[test]
fn a_claim_that_somebody_has_removed_is_made_again() {
    let _turn = turn();
    let scratch = Scratch::with(ORIGINAL_TEXT);
    let mut client = scratch.client();
    client.set(&SERVERS);
    fs::remove_dir_all(scratch.0.path().join("state")).unwrap();
    assert!(!client.is_set(&SERVERS));
    client.set(&SERVERS);
    // Another one that starts and ends does not take it for a dead one's.
    scratch.client().stop();
    assert!(client.is_set(&SERVERS));
    client.stop();
    assert_eq!(scratch.text(), ORIGINAL_TEXT);
}

/// As an earlier version named it.
#[test]
fn what_we_have_written_says_where_its_original_is() {
    let _turn = turn();
    let scratch = Scratch::new();
    let original = scratch.0.path().join("etc/resolv.conf.lostlove-lostlove0");
    fs::write(&original, ORIGINAL_TEXT).unwrap();
    let line = format!("{WRITTEN}{}{RETURNS}\n", original.display());
    fs::write(scratch.path(), format!("{line}nameserver 10.8.0.1\n")).unwrap();
    assert_eq!(original_text(&scratch.path()), ORIGINAL_TEXT);
    let mut client = scratch.client();
    client.set(&SERVERS[1..]);
    assert_eq!(scratch.text(), format!("{line}nameserver fd00::1\n"));
    client.stop();
    assert_eq!(scratch.text(), ORIGINAL_TEXT);
    assert_eq!(scratch.names(), ["resolv.conf"]);
}

#[test]
fn everybody_can_read_the_file_whatever_the_umask() {
    namespace::run(|ns| {
        let mut client = Client::new(&ns.paths.resolv_conf, &ns.paths.state_dir);
        // A mount namespace of one's own comes with a umask of one's own.
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let result = client.try_to_set(&SERVERS);
        rustix::process::umask(umask);
        result.unwrap();

        let metadata = fs::metadata(&ns.paths.resolv_conf).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
    });
}

#[test]
fn nothing_to_undo_is_no_error_where_nothing_can_be_written() {
    namespace::run(|ns| {
        let etc = ns.file("etc");
        fs::create_dir(&etc).unwrap();
        let folder = etc.display().to_string();
        fs::write(etc.join("resolv.conf"), ORIGINAL_TEXT).unwrap();
        ns.shell(&format!(
            "mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}"
        ));
        let mut client = Client::new(&etc.join("resolv.conf"), &ns.paths.state_dir);
        let refused = client.try_to_set(&SERVERS);
        assert!(refused.is_err(), "it is not read-only");
        assert!(client.claim.is_none());

        client.stop();

        assert!(names(&ns.paths.state_dir).is_empty());
        ns.shell(&format!("umount {folder}"));
    });
}

#[test]
fn where_there_was_no_file_there_is_none_afterwards() {
    let _turn = turn();
    let scratch = Scratch::new();
    let mut client = scratch.client();

    client.set(&SERVERS);
    assert!(client.is_set(&SERVERS));
    client.stop();

    assert!(scratch.names().is_empty());
}

/// It came with a copy, such as a container's of its host's file, or somebody has put it back after our end.
#[test]
fn a_file_of_ours_stays_where_nobody_knows_its_original() {
    namespace::run(|ns| {
        let path = &ns.paths.resolv_conf;
        let text = format!("{WRITTEN}{}.lostlove{RETURNS}\n", path.display());
        let text = text + "nameserver 10.8.0.1\n";
        fs::write(path, &text).unwrap();
        fs::write(ns.file("given"), &text).unwrap();
        let mount = format!(
            "mount --bind {} {}",
            ns.file("given").display(),
            path.display()
        );
        for is_mounted in [false, true] {
            if is_mounted {
                ns.shell(&mount);
            }
            let mut client = Client::new(path, &ns.paths.state_dir);
            client.stop();
            assert_eq!(read(path), text, "mounted: {is_mounted}");
            client.set(&["10.9.0.1"]);
            assert!(read(path).ends_with("\nnameserver 10.9.0.1\n"));
            client.stop();
            assert_eq!(read(path), text, "mounted: {is_mounted}");
        }
        ns.shell(&format!("umount {}", path.display()));
        assert_eq!(names(&ns.file("")), ["given", "resolv.conf", "state"]);
    });
}

#[test]
fn what_another_program_wrote_since_stays() {
    let _turn = turn();
    let scratch = Scratch::with(ORIGINAL_TEXT);
    let mut client = scratch.client();
    client.set(&SERVERS);
    fs::write(scratch.path(), "nameserver 198.51.100.53\n").unwrap();

    client.stop();

    assert_eq!(scratch.text(), "nameserver 198.51.100.53\n");
    assert_eq!(scratch.names(), ["resolv.conf"]);
}

/// Case 105: containers mount the file from outside, so that it cannot be replaced. Two who share the
/// folder, as two namespaces do, have one each.
#[test]
fn a_mounted_file_is_rewritten_in_place() {
    namespace::run(|ns| {
        let path = ns.paths.resolv_conf.display().to_string();
        fs::write(ns.file("a"), "nameserver 192.0.2.1\n").unwrap();
        fs::write(
            ns.file("b"),
            "nameserver 192.0.2.2\n# longer\n# than ours, by a line or two, or three\n# or four\n",
        )
        .unwrap();
        let before = ["a", "b"].map(|name| read(&ns.file(name)));
        let mut clients = ["a", "b"].map(|name| {
            let file = ns.file(name).display().to_string();
            ns.shell(&format!("mount --bind {file} {path}"));
            let mut client = Client::new(&ns.paths.resolv_conf, &ns.paths.state_dir);
            let servers: &[&str] = if name == "a" {
                &["10.8.0.1"]
            } else {
                &["10.9.0.1"]
            };
            client.set(servers);
            assert!(client.is_set(servers));
            ns.shell(&format!("umount {path}"));
            client
        });
        let ends = |name: &str, end: &str| read(&ns.file(name)).ends_with(end);
        assert!(ends("a", " returns.\nnameserver 10.8.0.1\n"));
        assert!(ends("b", " returns.\nnameserver 10.9.0.1\n"));
        assert_eq!(read(&ns.paths.resolv_conf), ORIGINAL_TEXT);

        for (name, client) in ["a", "b"].into_iter().zip(&mut clients) {
            let file = ns.file(name).display().to_string();
            ns.shell(&format!("mount --bind {file} {path}"));
            client.stop();
            ns.shell(&format!("umount {path}"));
        }

        assert_eq!(["a", "b"].map(|name| read(&ns.file(name))), before);
        let names = names(&ns.file(""));
        assert_eq!(names, ["a", "b", "resolv.conf", "state"]);
    });
}

/// As somebody makes a file for `ip netns exec` while a client of the host runs.
#[test]
fn a_copy_of_a_file_that_we_have_written_does_not_take_its_original() {
    namespace::run(|ns| {
        let path = ns.paths.resolv_conf.display().to_string();
        let copy = ns.file("copy");
        let mut of_host = Client::new(&ns.paths.resolv_conf, &ns.paths.state_dir);
        of_host.set(&SERVERS);
        ns.shell(&format!(
            "cp {path} {0}; mount --bind {0} {path}",
            copy.display()
        ));
        let before = read(&copy);
        let mut of_copy = Client::new(&ns.paths.resolv_conf, &ns.paths.state_dir);
        let is_known = written(&of_copy.path, &of_copy.backup);
        assert_eq!(is_known, Some(None));
        of_copy.stop();
        assert_eq!(read(&copy), before);
        assert_eq!(original_text(&ns.paths.resolv_conf), before);

        of_copy.set(&["10.9.0.1"]);
        assert!(of_copy.is_set(&["10.9.0.1"]) && !of_copy.is_set(&SERVERS));
        assert!(read(&copy).ends_with("\nnameserver 10.9.0.1\n"));
        of_copy.stop();
        assert_eq!(read(&copy), before);
        ns.shell(&format!("umount {path}"));

        of_host.stop();
        assert_eq!(read(&ns.paths.resolv_conf), ORIGINAL_TEXT);
        assert_eq!(names(&ns.file("")), ["copy", "resolv.conf", "state"]);

        // Nor does the host's file, if it is made of that of a namespace.
        let of_mounted = ns.file("resolv.conf.lostlove-fd00-1c3");
        fs::write(&of_mounted, "nameserver 192.0.2.1\n").unwrap();
        let line = format!("{WRITTEN}{}{RETURNS}\n", of_mounted.display());
        fs::write(&ns.paths.resolv_conf, &line).unwrap();
        Client::new(&ns.paths.resolv_conf, &ns.paths.state_dir).stop();
        assert_eq!(read(&ns.paths.resolv_conf), line);
        assert_eq!(read(&of_mounted), "nameserver 192.0.2.1\n");
    });
}

/// `ip netns exec` mounts what is meant for `/etc/resolv.conf` over what that links to, and shares `/etc`
/// with everybody.
#[test]
fn a_link_to_a_mounted_file_stays() {
    namespace::run(|ns| {
        let (stub, own) = (ns.file("stub"), ns.file("own"));
        fs::write(&stub, ORIGINAL_TEXT).unwrap();
        fs::write(&own, "nameserver 192.0.2.1\n").unwrap();
        fs::remove_file(&ns.paths.resolv_conf).unwrap();
        symlink("stub", &ns.paths.resolv_conf).unwrap();
        ns.shell(&format!(
            "mount --bind {} {}",
            own.display(),
            stub.display()
        ));
        assert!(is_mounted(&ns.paths.resolv_conf));
        let mut client = Client::new(&ns.paths.resolv_conf, &ns.paths.state_dir);

        client.set(&SERVERS);
        let text = read(&own);
        assert!(text.ends_with("nameserver fd00::1\n"), "{text}");
        client.stop();

        assert_eq!(read(&own), "nameserver 192.0.2.1\n");
        let link = fs::read_link(&ns.paths.resolv_conf).unwrap();
        assert_eq!(link, Path::new("stub"));
        ns.shell(&format!("umount {}", stub.display()));
        assert_eq!(read(&stub), ORIGINAL_TEXT);
    });
}

fn parsed(servers: &[&str]) -> Vec<IpAddr> {
    servers.iter().map(|text| text.parse().unwrap()).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
