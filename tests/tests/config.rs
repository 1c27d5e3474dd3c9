//! Exit codes and messages of both daemons before they start to work. Needs no root.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs::{self, File};
use std::io::pipe;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use lostlove_core::crypto::SecretKey;
use lostlove_tests::{Driver, Settings, skip};
use tempfile::TempDir;

#[test]
fn a_good_file_passes_the_check() {
    let dir = Directory::new();
    for (program, settings) in dir.daemons() {
        let output = dir.check(&program, &settings);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

/// Whoever has closed the pipe has read enough.
#[test]
fn a_check_into_a_closed_pipe_says_by_its_code_whether_the_file_is_good() {
    let dir = Directory::new();
    for (program, mut settings) in dir.daemons() {
        for (mtu, code) in [(1400, 0), (100, 78)] {
            let (_, stdout) = pipe().unwrap();
            let mut command = dir.check_command(&program, settings.set("network.mtu", mtu));
            let output = command.stdout(stdout).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{output:?}");
            assert_eq!(output.stderr.is_empty(), code == 0, "{output:?}");
        }
    }
}

#[test]
fn a_check_that_cannot_be_written_is_an_error() {
    let dir = Directory::new();
    for (program, settings) in dir.daemons() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = dir.check_command(&program, &settings);
        let output = command.stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("cannot write the answer: "), "{text}");
    }
}

/// Nor is there a panic when nobody hears the complaint.
#[test]
fn a_bad_file_has_its_code_when_standard_error_is_closed() {
    let dir = Directory::new();
    for (program, mut settings) in dir.daemons() {
        let (_, stderr) = pipe().unwrap();
        let mut command = dir.check_command(&program, settings.set("network.mtu", 100));
        assert_eq!(command.stderr(stderr).status().unwrap().code(), Some(78));
    }
}

#[test]
fn a_bad_value_is_named_with_its_place() {
    let dir = Directory::new();
    for (program, mut settings) in dir.daemons() {
        let output = dir.check(&program, settings.set("network.mtu", 100));
        assert_eq!(output.status.code(), Some(78));
        let text = String::from_utf8(output.stderr).unwrap();
        let line = 1 + settings
            .to_string()
            .lines()
            .position(|it| it == "mtu = 100")
            .unwrap();
        assert!(text.contains(&format!("config.toml:{line}:")), "{text}");
        assert!(text.contains("network.mtu"), "{text}");
        assert!(text.contains("576"), "{text}");
    }
}

#[test]
fn a_client_without_a_profile_is_told_where_one_comes_from() {
    let dir = Directory::new();
    let [_, (client, _)] = dir.daemons();
    for arguments in [&["--check-config"][..], &[]] {
        let output = Command::new(&client)
            .args(arguments)
            .arg("--config")
            .arg(dir.path().join("absent.toml"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("absent.toml: cannot read"), "{text}");
        assert!(text.contains("lostlove peer add"), "{text}");
    }
}

#[test]
fn a_file_of_the_other_end_is_recognised() {
    let dir = Directory::new();
    let [(server, mut servers), (client, profile)] = dir.daemons();
    servers.set("server.port", 8443);
    for (program, settings, words) in [
        (server, profile, "this is a client's profile"),
        (client, servers, "this is a server's configuration"),
    ] {
        let output = dir.check(&program, &settings);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(words) && text.lines().count() == 1, "{text}");
    }
}

/// The file may be right for another machine, or an interface that is still to come.
#[test]
fn translation_on_an_interface_that_is_not_there_is_a_warning() {
    let dir = Directory::new();
    let [(program, mut server), _] = dir.daemons();
    let output = dir.check(&program, server.set("network.nat", "\"nosuch0\""));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let warning = "warning: network.nat names the interface \"nosuch0\", which is not there";
    assert!(text.contains(warning), "{text}");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name() {
    let dir = Directory::new();
    for (program, mut settings) in dir.daemons() {
        let output = dir.check(&program, settings.set("network.tun_nane", "\"x\""));
        assert_eq!(output.status.code(), Some(78));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("tun_name"), "{text}");
    }
}

#[test]
fn a_key_that_others_can_read_is_refused_and_never_shown() {
    let dir = Directory::new();
    let key = dir.path().join("private.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    for (program, settings) in dir.daemons() {
        let output = dir.check(&program, &settings);
        assert_eq!(output.status.code(), Some(78));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("private.key"), "{text}");
        assert!(
            !text.contains(fs::read_to_string(&key).unwrap().trim()),
            "{text}"
        );
    }
}

/// A file that another user owns or can write is not what root's daemon obeys.
#[test]
fn root_refuses_files_that_others_can_change() {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return;
    }
    let dir = Directory::new();
    let key = dir.path().join("private.key");
    for (program, settings) in dir.daemons() {
        let config = dir.write(&settings);
        let check = |variable: &str, value: &std::ffi::OsStr| {
            let output = Command::new(&program)
                .args(["--check-config", "--config"])
                .arg(&config)
                .env_remove("SUDO_UID")
                .env(variable, value)
                .output()
                .unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            (output.status.code(), text)
        };
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let (good, unset) = (Some(0), "UNUSED");
        mode(&config, 0o664);
        let (code, text) = check(unset, "".as_ref());
        assert_eq!(code, Some(78));
        assert!(text.contains("config.toml: expected a file that only root can change, found one of user 0 with mode 0664"), "{text}");
        mode(&config, 0o644);
        assert_eq!(check(unset, "".as_ref()).0, good);
        for path in [&config, &key] {
            chown(path, Some(1234), None).unwrap();
            let (code, text) = check(unset, "".as_ref());
            assert_eq!(code, Some(78));
            assert!(text.contains("user 1234 with mode 06"), "{text}");
            assert_eq!(check("SUDO_UID", "1234".as_ref()).0, good);
            chown(path, Some(0), None).unwrap();
        }
        mode(&key, 0o440);
        assert_eq!(check(unset, "".as_ref()).0, Some(78));
        let folder = dir.path().as_os_str();
        assert_eq!(check("CREDENTIALS_DIRECTORY", folder).0, good);
        mode(&key, 0o600);
    }
}

#[test]
fn a_missing_file_is_bad_configuration() {
    let dir = Directory::new();
    for (program, _) in dir.daemons() {
        let output = run(
            &program,
            &["--check-config", "--config", "/nonexistent.toml"],
        );
        assert_eq!(output.status.code(), Some(78), "{output:?}");
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let dir = Directory::new();
    for (program, _) in dir.daemons() {
        assert_eq!(run(&program, &["--nonsense"]).status.code(), Some(2));
        assert_eq!(
            run(&program, &["--log-level", "loud"]).status.code(),
            Some(2)
        );
        assert_eq!(run(&program, &["--help"]).status.code(), Some(0));
        assert_eq!(run(&program, &["--version"]).status.code(), Some(0));
    }
}

/// Case 101: without the right to make a device.
#[test]
fn missing_permission_is_said_and_has_its_own_exit_code() {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return;
    }
    let dir = Directory::new();
    for (program, settings) in dir.daemons() {
        let config = dir.write(&settings);
        let output = Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(&program)
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(77), "{output:?}");
        assert!(!output.stderr.is_empty());
    }
}

/// A key and configurations of both daemons.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        let directory = Self(TempDir::new().unwrap());
        let key = directory.path().join("private.key");
        fs::write(&key, &*SecretKey::from_bytes([1; 32]).to_base64()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        directory
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn daemons(&self) -> [(std::path::PathBuf, Settings); 2] {
        let mut server = Settings::default();
        server
            .set("network.mtu", 1400)
            .set("security.private_key_file", "\"private.key\"");
        let mut client = Settings::default();
        let public_key = SecretKey::from_bytes([2; 32]).public_key();
        client
            .set("client.server", "\"192.0.2.1:8443\"")
            .set("client.server_public_key", format!("\"{public_key}\""))
            .set("client.private_key_file", "\"private.key\"");
        [
            (Driver::of_server().server(), server),
            (Driver::of_client().client(), client),
        ]
    }

    fn write(&self, settings: &Settings) -> std::path::PathBuf {
        let path = self.path().join("config.toml");
        fs::write(&path, settings.to_string()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn check(&self, program: &Path, settings: &Settings) -> Output {
        self.check_command(program, settings).output().unwrap()
    }

    fn check_command(&self, program: &Path, settings: &Settings) -> Command {
        let mut command = Command::new(program);
        command
            .args(["--check-config", "--config"])
            .arg(self.write(settings));
        command
    }
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}
