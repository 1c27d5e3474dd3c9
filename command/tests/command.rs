//! The `lostlove` command, as a shell sees it.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Write as _, pipe};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lostlove_config::{Routes, load_client, load_server};
use lostlove_host::setup::first_start;

#[test]
fn the_help_lists_every_command_and_the_exit_codes() {
    let output = run(&["--help"], "");
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for word in [
        "genkey",
        "pubkey",
        "genpsk",
        "add-peer",
        "doctor",
        "status",
        "disconnect",
        "log-level",
        "reload",
        "77",
        "78",
    ] {
        assert!(help.contains(word), "{word} in {help}");
    }
    let output = run(&["add-peer", "--help"], "");
    let help = text(&output.stdout);
    for word in ["--server", "--output", "/etc/lostlove/server.toml"] {
        assert!(help.contains(word), "{word} in {help}");
    }
}

#[test]
fn the_version_is_printed() {
    let output = run(&["--version"], "");
    assert_eq!(output.status.code(), Some(0));
    let expected = format!("lostlove {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn nonsense_exits_with_2_and_points_to_the_help() {
    for args in [
        &[][..],
        &["genky"],
        &["genkey", "extra"],
        &["add-peer"],
        &["add-peer", "a", "--full", "--split"],
        &["disconnect"],
        &["log-level"],
        &["log-level", "loud"],
        &["status", "a", "b"],
        &["doctor", "lostlove0"],
        &["doctor", "--config"],
        &["add-peer", "a", "--server", "https://x:1"],
        &["add-peer", "a", "--server", "0.0.0.0"],
        &["add-peer", "a", "--server", "[::]:8443"],
    ] {
        let output = run(args, "");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("--help"), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn keys_pass_through_pipes() {
    let secret = text(&run(&["genkey"], "").stdout);
    let output = run(&["pubkey"], &secret);
    assert_eq!(output.status.code(), Some(0));
    let public = text(&output.stdout);
    assert_eq!((secret.len(), public.len()), (45, 45));
    assert_eq!(text(&run(&["genpsk"], "").stdout).len(), 45);
    if let Some(expected) = output_of_wg(&secret) {
        assert_eq!(public, expected);
    }
}

#[test]
fn what_is_no_key_exits_with_1_and_is_not_repeated() {
    let output = run(&["pubkey"], "not-a-key-but-secret\n");
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("base64"), "{message}");
    assert!(!message.contains("not-a-key-but-secret"));
}

#[test]
fn a_key_in_a_file_that_others_can_read_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        let path = folder.path().join(format!("{mode:o}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        let output = lostlove(&["genkey"]).stdout(file).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stderr).contains("umask"), warned, "{mode:o}");
        assert_eq!(fs::read(&path).unwrap().len(), 45);
    }
}

#[test]
fn a_closed_pipe_is_an_error_and_no_panic() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = lostlove(&["genkey"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.starts_with("lostlove: cannot write"), "{message}");
}

#[test]
fn who_closes_a_pipe_hears_no_complaint() {
    let secret = text(&run(&["genkey"], "").stdout);
    for (args, code) in [
        (&["genkey"][..], 1),
        (&["genpsk"], 1),
        (&["pubkey"], 1),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        let output = run_into(closed_pipe(), args, &secret);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(text(&output.stderr), "", "{args:?}");
    }
}

#[test]
fn a_client_whose_profile_nobody_takes_is_not_added() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    first_start(&config).unwrap();
    let before = fs::read(&config).unwrap();
    let output = run_into(closed_pipe(), &add_peer_args(&config, &[]), "");
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.starts_with("lostlove: cannot write the profile: "),
        "{message}"
    );
    assert_eq!(fs::read(&config).unwrap(), before);
}

#[test]
fn a_peer_is_added_and_its_profile_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    first_start(&config).unwrap();
    let profile = folder.path().join("laptop.toml");
    let args = add_peer_args(&config, &["--output", profile.to_str().unwrap()]);
    let output = run(&args, "");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert!(message.contains("lostlove reload"), "{message}");
    assert!(output.stdout.is_empty());
    for path in [&config, &profile] {
        let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
    }
    let client = load_client(&profile).unwrap();
    assert_eq!(client.host.routes, Routes::Full);
    assert_eq!(client.host.server[0].to_string(), "vpn.example:443");
    let server = load_server(&config).unwrap();
    assert!(server.peers.iter().any(|peer| peer.name == "laptop"));

    let output = run(&args, "");
    assert_eq!(output.status.code(), Some(78), "the name is taken");
}

#[test]
fn a_profile_for_split_routing_goes_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    first_start(&config).unwrap();
    let output = run(&add_peer_args(&config, &["--split"]), "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let profile = folder.path().join("piped.toml");
    fs::write(&profile, &output.stdout).unwrap();
    fs::set_permissions(&profile, Permissions::from_mode(0o600)).unwrap();
    let client = load_client(&profile).unwrap();
    assert_eq!(client.host.routes, Routes::Server);
}

#[test]
fn a_missing_configuration_exits_with_78_and_advice() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["server.toml", "missing/server.toml"] {
        let config = folder.path().join(name);
        let output = run(&add_peer_args(&config, &[]), "");
        assert_eq!(output.status.code(), Some(78));
        let message = text(&output.stderr);
        assert!(message.contains("--config"), "{message}");
    }
}

/// Needs to be root, in order to become somebody else.
#[test]
fn a_configuration_of_somebody_else_exits_with_77_and_advice() {
    use std::os::unix::process::CommandExt as _;
    let folder = tempfile::tempdir().unwrap();
    if !rustix::process::geteuid().is_root() {
        let may_skip = std::env::var_os("LOSTLOVE_TEST_NO_SKIP").is_none();
        assert!(may_skip, "must not be skipped: needs root");
        eprintln!("skipped: only root can run a command as somebody else");
        return;
    }
    let config = folder.path().join("server.toml");
    first_start(&config).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let command = folder.path().join("lostlove");
    // Copied by another process: a descriptor open for writing here could be inherited by a
    // command that another test starts just now, and keep this one from being run (ETXTBSY).
    let copied = Command::new("cp")
        .args([Path::new(env!("CARGO_BIN_EXE_lostlove")), &command])
        .status()
        .unwrap();
    assert!(copied.success());
    let args = add_peer_args(&config, &[]);
    let output = Command::new(command)
        .args(args)
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{message}");
    assert!(message.contains("sudo"), "{message}");
}

fn add_peer_args<'a>(config: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let config = config.to_str().unwrap();
    let mut args = vec!["add-peer", "laptop", "--config", config];
    // Daemons of this machine are none of this test's business.
    args.extend(["--server", "vpn.example:443", "--no-reload"]);
    args.extend(more);
    args
}

fn lostlove(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lostlove"));
    command.args(args);
    command
}

/// A pipe whose reader has gone.
fn closed_pipe() -> Stdio {
    let (_, writer) = pipe().unwrap();
    writer.into()
}

fn run(args: &[&str], input: &str) -> Output {
    run_into(Stdio::piped(), args, input)
}

fn run_into(stdout: Stdio, args: &[&str], input: &str) -> Output {
    let mut child = lostlove(args)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that takes no input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What WireGuard's tool makes of the same key; none if it is not installed.
fn output_of_wg(secret: &str) -> Option<String> {
    let mut child = Command::new("wg")
        .arg("pubkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(secret.as_bytes()).ok()?;
    Some(text(&child.wait_with_output().ok()?.stdout))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
